"""``frontdesk chat``: talk to the bot from a terminal, or from a script with ``--json``."""

import asyncio
import codecs
import json
import os
import sys
import threading
import unicodedata
from dataclasses import asdict
from typing import Annotated, TextIO

import typer
from rich.console import Console
from rich.markup import escape

from chatbot.client import ChatClient
from chatbot.client_state import (
    Accepted,
    Connected,
    Disconnected,
    Problem,
    ReplyEnded,
    ReplyStarted,
    ReplyText,
    Said,
    StatusChanged,
    Update,
)
from chatbot.errors import StoreUnavailable
from chatbot.settings import load_settings

HELP = "/stop ends the reply, /human asks for a person, /quit leaves (so does Ctrl-C)"
_STATUS = {
    "bot": "the assistant answers again",
    "waiting": "waiting for a person",
    "human": "a person has joined",
    "closed": "the conversation is closed; write to open it again",
}


def add_commands(app: typer.Typer) -> None:
    """Register ``chat``."""
    app.command()(chat)


def chat(
    url: Annotated[str | None, typer.Option(help="Address of the server.")] = None,
    site: Annotated[str, typer.Option(help="Site whose visitor you are.")] = "demo",
    as_json: Annotated[
        bool, typer.Option("--json", help="One message a line in, one JSON object a line out.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="Longest wait for a reply, when the input is no terminal.")
    ] = 120.0,
) -> None:
    """Chat with the bot in the terminal, streaming. When the input is a file or a pipe, each
    line is sent when the one before was answered."""
    settings = load_settings()
    address = url or settings.public_url or f"http://{settings.host}:{settings.port}"
    screen = JsonLines(sys.stdout) if as_json else Screen(Console(highlight=False, soft_wrap=True))
    in_turn = as_json or not sys.stdin.isatty()
    asyncio.run(_talk(address, site, screen, timeout if in_turn else None))


class Lines:
    """Lines of standard input. A thread reads them: the event loop cannot wait for every kind
    of file, and ``sys.stdin``'s own lock would make an exit hang."""

    def __init__(self) -> None:
        self._lines: asyncio.Queue[str | None] = asyncio.Queue(maxsize=16)
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(sys.stdin.fileno(),), daemon=True).start()

    async def next(self) -> str | None:
        """The next line without its end; None when the input has ended."""
        return await self._lines.get()

    def _read(self, file: int) -> None:
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        rest = ""
        try:
            while data := os.read(file, 65536):
                *lines, rest = (rest + decode(data)).split("\n")
                for line in lines:
                    self._hand_on(line.removesuffix("\r"))
            if rest:
                self._hand_on(rest)
            self._hand_on(None)
        except RuntimeError:
            return  # the event loop has ended

    def _hand_on(self, line: str | None) -> None:
        asyncio.run_coroutine_threadsafe(self._lines.put(line), self._loop).result()


class Turn:
    """Whether the message that was sent last has got its answer."""

    def __init__(self) -> None:
        self._over = asyncio.Event()

    def note(self, update: Update, status: str) -> None:
        """``status``: who answers in this conversation now."""
        if _ends_turn(update) or (isinstance(update, Accepted) and status != "bot"):
            self._over.set()

    async def over(self) -> None:
        """Wait until it has. The next wait is for the next message."""
        await self._over.wait()
        self._over.clear()


def _ends_turn(update: Update) -> bool:
    match update:
        case ReplyEnded():
            return True
        case Said():
            return update.role == "agent"
        case StatusChanged():
            return update.status in ("waiting", "human")
        case Problem():
            return not update.tried_again
    return False


async def _talk(url: str, site: str, screen: "Screen | JsonLines", timeout: float | None) -> None:
    """``timeout``: send a line only when the one before was answered, and wait so long for it;
    None sends at once, as people type."""
    async with ChatClient(url, site, new_conversation=True) as client:
        screen.begin(client)
        turn = Turn()
        show = asyncio.create_task(_show(client, screen, turn))
        obey = asyncio.create_task(_obey(client, Lines(), turn, timeout))
        try:
            await asyncio.wait((show, obey), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (show, obey):
                task.cancel()
            results = await asyncio.gather(show, obey, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result


async def _show(client: ChatClient, screen: "Screen | JsonLines", turn: Turn) -> None:
    async for update in client.updates():
        screen.show(update)
        turn.note(update, client.state.status)


async def _obey(client: ChatClient, lines: Lines, turn: Turn, timeout: float | None) -> None:
    """Until the input ends or /quit."""
    while (line := await lines.next()) is not None:
        match line.strip():
            case "":
                continue
            case "/quit":
                return
            case "/stop":
                await client.stop_reply()
            case "/human":
                await client.request_handoff()
            case text:
                await client.send(text)
                if timeout is not None:
                    await _answer(turn, timeout)


async def _answer(turn: Turn, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await turn.over()
    except TimeoutError:
        raise StoreUnavailable(f"no reply within {timeout:g} s: is a worker running?") from None


def plain(text: str) -> str:
    """Text of others without control characters, which would steer the terminal (CWE-150)."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


class Screen:
    """Prints updates for people. Text of others is printed plainly, never as rich markup."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._writing = False  # a reply's line is not finished

    def begin(self, client: ChatClient) -> None:
        self._note(HELP)
        if client.welcome_text:
            self._note(client.welcome_text)

    def show(self, update: Update) -> None:
        """Print one update."""
        match update:
            case ReplyStarted():
                self._end_line()
                self._console.print("[bold cyan]bot[/bold cyan] ", end="")
                self._writing = True
            case ReplyText():
                self._console.out(plain(update.text), end="", highlight=False)
            case ReplyEnded():
                self._reply_ended(update)
            case Said() if update.role == "agent":
                self._line(
                    f"[bold magenta]{escape(plain(update.author))}[/bold magenta] ", update.text
                )
            case StatusChanged():
                self._note(_STATUS.get(update.status, update.status))
            case Disconnected():
                self._note("connection lost, trying again")
            case Problem():
                self._note(update.message)
            case Connected() | Accepted() | Said():
                pass

    def _reply_ended(self, update: ReplyEnded) -> None:
        if not self._writing:  # it came whole, after a reconnect
            self._line("[bold cyan]bot[/bold cyan] ", update.text)
        self._end_line()
        if update.finish_reason == "failed":
            self._note("the assistant could not finish its reply")
        elif update.finish_reason == "stopped":
            self._note("stopped")

    def _line(self, name: str, text: str) -> None:
        self._end_line()
        self._console.print(name, end="")
        self._console.out(plain(text), highlight=False)

    def _note(self, text: str) -> None:
        self._end_line()
        self._console.print(f"[dim]{escape(plain(text))}[/dim]")

    def _end_line(self) -> None:
        if self._writing:
            self._console.print()
            self._writing = False


class JsonLines:
    """Prints updates for programs, one JSON object a line: ``{"type": "ReplyText", …}``, named
    as in :mod:`chatbot.client_state`."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def begin(self, client: ChatClient) -> None:
        pass

    def show(self, update: Update) -> None:
        """Print one update."""
        line = {"type": type(update).__name__, **asdict(update)}
        print(json.dumps(line, ensure_ascii=False), file=self._out, flush=True)
