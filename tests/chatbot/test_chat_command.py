"""``frontdesk chat`` as people and scripts run it: a real process against a real server."""

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from rich.console import Console

from chatbot.chat_command import JsonLines, Screen, plain
from chatbot.client_state import (
    Disconnected,
    Problem,
    ReplyEnded,
    ReplyStarted,
    ReplyText,
    Said,
    StatusChanged,
)
from chatbot.record.database import Database
from tests.chatbot.server.room import DEADLINE, Running, ScriptedWorker, make_services, running

COMMAND = [
    sys.executable,
    "-c",
    "import typer; from chatbot.chat_command import add_commands; from chatbot.errors import "
    "FrontdeskError; app = typer.Typer(); add_commands(app); app.callback()(lambda: None); app()",
    "chat",
]
PIECES = ["Good ", "day ", "😀"]


@pytest.fixture
async def server(redis: Redis, database: Database, tmp_path: Path) -> AsyncIterator[Running]:
    services = make_services(redis, database, tmp_path)
    async with running(services) as started, ScriptedWorker(services, PIECES).at_work():
        yield started


async def _run(server: Running, *options: str, lines: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        "--url",
        server.url,
        *options,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE + 15):
        out, err = await process.communicate(lines.encode())
    return process.returncode or 0, out.decode(), err.decode()


async def test_json_lines(server: Running) -> None:
    code, out, err = await _run(server, "--json", lines="hello\n\nwhat now?\n")
    assert code == 0, err
    updates = [json.loads(line) for line in out.splitlines()]
    kinds = [update["type"] for update in updates]
    assert kinds[0] == "Connected"
    said = [index for index, update in enumerate(updates) if update["type"] == "Said"]
    ended = [index for index, update in enumerate(updates) if update["type"] == "ReplyEnded"]
    assert [updates[index]["text"] for index in said] == ["hello", "what now?"]
    assert [updates[index]["text"] for index in ended] == ["Good day 😀"] * 2
    assert said[0] < ended[0] < said[1] < ended[1]  # one after the other
    pieces = [update["text"] for update in updates if update["type"] == "ReplyText"]
    assert "".join(pieces) == "Good day 😀" * 2


async def test_a_pipe_without_json(server: Running) -> None:
    code, out, _ = await _run(server, lines="hello")
    assert code == 0
    assert "bot Good day 😀" in out


async def test_an_unknown_site_is_one_error(server: Running) -> None:
    code, out, err = await _run(server, "--site", "nowhere", "--json", lines="hello\n")
    assert code != 0
    assert out == ""
    assert "no site" in err


async def test_no_reply_in_time(redis: Redis, database: Database, tmp_path: Path) -> None:
    services = make_services(redis, database, tmp_path)
    async with running(services) as server:  # and no worker
        code, _, err = await _run(server, "--timeout", "0.5", lines="hello\n")
    assert code != 0
    assert "is a worker running?" in err


async def test_in_a_terminal(server: Running) -> None:
    """Typed text streams an answer; Ctrl-C leaves at once."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *("--url", server.url),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        # a shell starts background jobs with SIGINT ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    screen = b""

    async def seen(text: str) -> None:
        nonlocal screen
        async with asyncio.timeout(4 * DEADLINE):  # a program starts slowly on a busy machine
            while text.encode() not in screen:
                try:
                    screen += os.read(ours, 65536)
                except BlockingIOError:
                    await asyncio.sleep(0.01)

    try:
        await seen("/stop")
        os.write(ours, b"hello\n")
        await seen("Good day 😀")
        os.write(ours, b"/human\n")
        await seen("waiting for a person")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(DEADLINE):
            assert await process.wait() in (0, 1, 130, -signal.SIGINT)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)


def _screen(*updates: Any) -> str:
    out = StringIO()
    screen = Screen(Console(file=out, highlight=False, soft_wrap=True))
    for update in updates:
        screen.show(update)
    return out.getvalue()


def test_what_is_shown() -> None:
    assert _screen(
        ReplyStarted("r", "v"),
        ReplyText("r", "Good ", "Good "),
        ReplyText("r", "day", "Good day"),
        ReplyEnded("r", "Good day", "end", "v"),
        Said("visitor", "mine", "me", 1, "m"),
        Said("agent", "Anna here", "anna", 2, "a"),
        StatusChanged("human", "anna"),
        Problem("too_long", "the message is too long", None, "m"),
        Disconnected(1001, 0.5),
    ) == (
        "bot Good day\n"
        "anna Anna here\n"
        "a person has joined\n"
        "the message is too long\n"
        "connection lost, trying again\n"
    )
    assert _screen(ReplyEnded("r", "came whole", "stopped", "v")) == "bot came whole\nstopped\n"


def test_model_text_does_not_steer_the_terminal() -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J[red]text[/red]\u009b2J\r"
    assert plain(hostile) == "]0;owned[2J[red]text[/red]2J"
    shown = _screen(ReplyStarted("r", "v"), ReplyText("r", hostile, hostile))
    assert shown == f"bot {plain(hostile)}"


def test_json_lines_hold_every_character() -> None:
    out = StringIO()
    JsonLines(out).show(ReplyText("r", 'ü\n"😀', 'ü\n"😀'))
    assert json.loads(out.getvalue()) == {
        "type": "ReplyText",
        "reply_id": "r",
        "text": 'ü\n"😀',
        "so_far": 'ü\n"😀',
    }
    assert out.getvalue().count("\n") == 1
