"""A chat client in Python: keeps a socket open, resumes where it was, resends what was not
acknowledged. ``frontdesk chat``, tests and load generators use it.

::

    async with ChatClient("http://127.0.0.1:8080", site="demo") as chat:
        await chat.send("Where is my order?")
        async for update in chat.updates():
            ...
"""

import asyncio
import json
import random
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Origin

from chatbot.client_state import ChatState, Disconnected, Gap, Problem, Update
from chatbot.errors import (
    FrontdeskError,
    NotAllowed,
    NotAuthenticated,
    OriginRefused,
    ProtocolViolation,
    RateLimited,
    RequestRefused,
    StoreUnavailable,
)
from chatbot.protocol import CloseCode

_AT_ONCE = frozenset({CloseCode.GOING_AWAY, CloseCode.LOG_RESET, CloseCode.SLOW_READER})
_UNREACHABLE = (OSError, TimeoutError, InvalidHandshake, httpx.TransportError)
_NO_CLOSE_FRAME = 1006  # RFC 6455 section 7.4.1


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with full jitter (AWS Architecture Blog, "Exponential Backoff And
    Jitter", 2015), in seconds."""

    base: float = 0.5
    most: float = 30.0
    stable: float = 5.0  # a socket that was open so long starts the count anew
    draw: Callable[[], float] = random.random

    def pause(self, attempt: int) -> float:
        """``attempt`` counts from 0."""
        return self.draw() * min(self.most, self.base * 2.0 ** min(attempt, 30))


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Pings of the client's own, in seconds. A socket that is half open, in either direction,
    looks open and says nothing: only a ping that is not answered shows it."""

    interval: float = 20.0
    answer: float = 10.0  # a pong must come within this
    close: float = 2.0  # a peer that does not answer is not waited for longer than this


class ChatClient:
    """One visitor in one conversation, over any number of sockets one after another.

    Args:
        url: address of the server, ``http://…`` or ``https://…``.
        site: the site whose visitor this is.
        token: of an earlier client, to be the same visitor; None asks for a new one.
        conversation_id: to resume one; None is the visitor's main conversation.
        new_conversation: begin another conversation instead.
        origin: the ``Origin`` header to send; None sends none, as programs do.
        state: of an earlier client, to continue from its cursor.
    """

    def __init__(
        self,
        url: str,
        site: str,
        *,
        token: str | None = None,
        conversation_id: str | None = None,
        new_conversation: bool = False,
        origin: str | None = None,
        state: ChatState | None = None,
        backoff: Backoff | None = None,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._site = site
        self._origin = origin
        self._new_conversation = new_conversation
        self._backoff = backoff or Backoff()
        self._heartbeat = heartbeat or Heartbeat()
        self.token = token
        self.state = state or ChatState(conversation_id=conversation_id)
        self.welcome_text = ""
        self._socket: ClientConnection | None = None
        # bounded: a consumer that stops reading stops the socket, and the server notices
        self._updates: asyncio.Queue[Update | Exception] = asyncio.Queue(maxsize=256)
        self._due = asyncio.Event()  # something may have to be sent
        self._task: asyncio.Task[None] | None = None
        self._attempt = 0
        self._last_problem = ""

    async def __aenter__(self) -> Self:
        """Begin. The first token is asked for here, so that a wrong address or site is told at
        once; afterwards the client retries by itself.

        Raises:
            StoreUnavailable: the server cannot be reached, or cannot answer now.
            OriginRefused, NotAllowed, RequestRefused: it does not want us.
        """
        if self.token is None:
            try:
                await self._get_token()
            except _UNREACHABLE as error:
                raise StoreUnavailable(
                    f"no Frontdesk server answers at {self._url}: {error or type(error).__name__}"
                ) from error
        self._task = asyncio.create_task(self._run(), name="chat client")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    # -- what the caller does

    async def send(self, text: str, client_message_id: str | None = None) -> str:
        """Send a message; kept and sent again until the server has taken it. Returns its id.

        Raises:
            Overloaded: too many messages wait to be sent.
        """
        message_id = client_message_id or f"m-{secrets.token_hex(12)}"
        self.state.add_message(message_id, text)
        self._due.set()
        return message_id

    async def stop_reply(self) -> bool:
        """Stop the reply that is being written; False when there is none or no connection."""
        reply_id = self.state.reply_id
        if reply_id is None:
            return False
        return await self._send_now({"type": "reply.stop", "reply_id": reply_id})

    async def request_handoff(self) -> bool:
        """Ask for a person; False when there is no connection."""
        return await self._send_now({"type": "handoff.request"})

    async def give_rating(self, score: int, comment: str = "") -> bool:
        """Rate the conversation, 1 to 5; False when there is no connection."""
        return await self._send_now({"type": "rating.give", "score": score, "comment": comment})

    async def drop_connection(self) -> None:
        """Cut the present socket, as a network would; the client reconnects."""
        if self._socket is not None:
            self._socket.transport.abort()

    async def updates(self) -> AsyncIterator[Update]:
        """Everything that happens, in order. One consumer at a time.

        Raises:
            NotAllowed, NotAuthenticated, ProtocolViolation: the server ended it for good.
        """
        while True:
            update = await self._updates.get()
            if isinstance(update, Exception):
                raise update
            yield update

    # -- the connection

    async def _get_token(self) -> None:
        headers = {"Origin": self._origin} if self._origin else {}
        body = {"site": self._site} | ({"visitor_token": self.token} if self.token else {})
        async with httpx.AsyncClient(timeout=10) as http:
            answer = await http.post(f"{self._url}/v1/visitors", json=body, headers=headers)
        if answer.status_code != httpx.codes.OK:
            raise _refusal(answer)
        data = answer.json()
        self.token = data["token"]
        self.welcome_text = data.get("site", {}).get("welcome", "")

    async def _send_now(self, frame: dict[str, Any]) -> bool:
        if self._socket is None:
            return False
        try:
            await self._socket.send(json.dumps(frame))
        except ConnectionClosed:
            return False
        return True

    async def _run(self) -> None:
        """Connect again and again until the server says not to."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                code = await self._one_socket()
            except (*_UNREACHABLE, ConnectionClosed):  # gone before hello, or never there
                code = _NO_CLOSE_FRAME
            except Exception as error:
                await self._updates.put(error)
                raise
            if loop.time() - began > self._backoff.stable:
                self._attempt = 0
            final = self._final(code)
            if final is not None:
                await self._updates.put(final)
                return
            await self._pause(code)

    async def _pause(self, code: int) -> None:
        pause = self._backoff.pause(self._attempt)
        if code in _AT_ONCE and self._attempt == 0:
            pause = 0.0
        self._attempt += 1
        await self._updates.put(Disconnected(code, pause))
        await asyncio.sleep(pause)

    def _final(self, code: int) -> FrontdeskError | None:
        """The error that ends the client, if this close code is one to give up on."""
        said = self._last_problem
        if code == CloseCode.PROTOCOL:
            return ProtocolViolation(said or "the server did not understand this client")
        if code == CloseCode.NOT_ALLOWED:
            return NotAllowed(said or "the server refuses this conversation")
        if code == CloseCode.NOT_AUTHENTICATED:
            # a new token would be a new visitor, who may not see this conversation
            return NotAuthenticated(said or "the server refuses this visitor's token")
        return None

    async def _one_socket(self) -> int:
        """One socket from hello to its end; returns the close code."""
        self._last_problem = ""
        address = "ws" + self._url.removeprefix("http") + "/v1/chat"
        origin = Origin(self._origin) if self._origin else None
        async with connect(
            address,
            origin=origin,
            max_size=None,
            compression=None,
            open_timeout=10,
            ping_interval=self._heartbeat.interval,
            ping_timeout=self._heartbeat.answer,
            close_timeout=self._heartbeat.close,
        ) as socket:
            await socket.send(
                json.dumps(self.state.hello(self.token or "", self._new_conversation))
            )
            sender: asyncio.Task[None] | None = None
            try:
                async for text in socket:
                    frame = json.loads(text)
                    await self._take(frame)
                    if frame["type"] == "welcome":
                        self._socket = socket
                        sender = asyncio.create_task(self._send_due(socket))
            except Gap:
                return CloseCode.LOG_RESET
            except ConnectionClosed:
                pass
            finally:
                self._socket = None
                self.state.disconnected()
                if sender is not None:
                    sender.cancel()
                    await asyncio.gather(sender, return_exceptions=True)
            return socket.close_code or _NO_CLOSE_FRAME

    async def _take(self, frame: dict[str, Any]) -> None:
        for update in self.state.receive(frame, asyncio.get_running_loop().time()):
            if isinstance(update, Problem):
                self._last_problem = update.message
                self._due.set()
            await self._updates.put(update)

    async def _send_due(self, socket: ClientConnection) -> None:
        """Send what is due on this socket, in order, as it becomes due."""
        loop = asyncio.get_running_loop()
        while True:
            self._due.clear()
            wait: float | None = None
            for message_id, message in list(self.state.unacknowledged.items()):
                if message.sent:
                    continue
                if message.due > loop.time():
                    wait = message.due - loop.time()
                    break  # what was written later is not said earlier
                message.sent = True
                frame = {
                    "type": "message.send",
                    "client_message_id": message_id,
                    "text": message.text,
                }
                await socket.send(json.dumps(frame))
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._due.wait()


def _refusal(answer: httpx.Response) -> FrontdeskError:
    """The exception of an HTTP error answer."""
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {answer.status_code}"
    if answer.status_code >= 500:
        return StoreUnavailable(message)
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        return RateLimited(message)
    if answer.status_code == httpx.codes.FORBIDDEN:
        return OriginRefused(message)
    return RequestRefused(message)
