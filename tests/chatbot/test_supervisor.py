"""The supervisor with a real child: the embedded store, killed and started again."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from redis import Redis

from chatbot.embedded_store import embedded_url
from chatbot.supervisor import Program, Supervisor


def _store(data_dir: Path) -> Program:
    async def ready() -> bool:
        return await asyncio.to_thread(embedded_url, data_dir) is not None

    arguments = ("store", "--data-dir", str(data_dir))
    return Program("store", arguments, data_dir / "logs" / "store.log", ready=ready)


async def _until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.05)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor([_store(tmp_path)])
    await supervisor.start()
    yield supervisor
    await supervisor.stop()


async def test_a_killed_program_comes_back_with_its_data(store: Supervisor, tmp_path: Path) -> None:
    url = embedded_url(tmp_path)
    assert url is not None
    with Redis.from_url(url) as client:
        client.set("a", "1")
        server_pid = int(client.info("server")["process_id"])
    os.kill(server_pid, signal.SIGKILL)

    def kept() -> bool:
        now = embedded_url(tmp_path)
        if now is None:
            return False
        with Redis.from_url(now, decode_responses=True) as client:
            return int(client.info("server")["process_id"]) != server_pid and client.get("a") == "1"

    await _until(kept)


async def test_stop_ends_the_program(store: Supervisor, tmp_path: Path) -> None:
    await store.stop()
    assert embedded_url(tmp_path) is None
    assert not (tmp_path / "valkey" / "server.json").exists()


async def test_a_program_that_never_gets_ready_is_named_with_its_log(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    program = Program("config", ("config",), tmp_path / "logs" / "config.log", ready=never)
    supervisor = Supervisor([program])
    with pytest.raises(RuntimeError, match=r"config did not start; see .*config\.log"):
        await supervisor.start(ready_seconds=0.5)
    await supervisor.stop()
