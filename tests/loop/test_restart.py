"""`frontdesk up` on one machine: killed without warning and started again, refused twice over."""

import asyncio
import os
import signal
import socket
import sys
import time
from pathlib import Path

import httpx
import pytest

from bench.product import children, free_port, running_product
from chatbot.client import ChatClient
from chatbot.client_state import Accepted, ReplyEnded
from chatbot.errors import Conflict
from chatbot.up import only_one

pytestmark = [pytest.mark.loop, pytest.mark.model, pytest.mark.timeout(600)]


async def _send_and_wait(chat: ChatClient, text: str, kind: type[Accepted | ReplyEnded]) -> None:
    await chat.send(text)
    async with asyncio.timeout(120):
        async for update in chat.updates():
            if isinstance(update, kind):
                return


async def test_everything_acknowledged_is_there_after_sigkill(tmp_path: Path) -> None:
    """The whole product dies in the middle of a reply; the next start finishes it."""
    port = free_port()
    texts = ["Hello, do you sell ferns?", "And pots?", "How long does delivery take?"]
    async with running_product(tmp_path, port) as product:
        async with ChatClient(product.url, "demo") as chat:
            await _send_and_wait(chat, texts[0], ReplyEnded)
            await _send_and_wait(chat, texts[1], ReplyEnded)
            await _send_and_wait(chat, texts[2], Accepted)
            token, name = chat.token, chat.state.conversation_id
        first = await _versions(product.url, product.token)
        supervised = children(product.pid)
        os.kill(product.pid, signal.SIGKILL)
        product.process.wait()
        await asyncio.to_thread(_wait_gone, list(supervised.values()))
    assert first["live"]
    async with running_product(tmp_path, port) as product:
        assert await _versions(product.url, product.token) == first
        async with ChatClient(product.url, "demo", token=token, conversation_id=name) as chat:
            said = []
            replies = 0
            async with asyncio.timeout(120):
                async for update in chat.updates():
                    if isinstance(update, ReplyEnded):
                        assert update.finish_reason in ("end", "length")
                        replies += 1
                    said += [update.text] if getattr(update, "role", "") == "visitor" else []
                    if replies == 3:
                        break
        assert said == texts


async def _versions(url: str, token: str) -> dict[str, object]:
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as api:
        answer = await api.get(f"{url}/v1/admin/versions")
    found: dict[str, object] = answer.raise_for_status().json()
    return found


def _wait_gone(pids: list[int]) -> None:
    """The children end by themselves when their parent is gone."""
    deadline = time.monotonic() + 60
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() < deadline, "a process outlived its supervisor"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_second_up_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    async with only_one(tmp_path):
        with pytest.raises(Conflict, match=f"uses {tmp_path}"):
            async with only_one(tmp_path):
                pass
    async with only_one(tmp_path):
        pass


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    """Also when it is no Frontdesk that listens there."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "chatbot.cli", "up", "--no-console"),
            *("--data-dir", str(tmp_path), "--port", str(port)),
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await process.communicate()
    assert process.returncode == 1
    assert f"port {port} is taken" in said.decode()
