"""Trying a version: a conversation of its own, answered by a worker as any other, then forgotten.

The answer is a stream of JSON lines: ``started``, ``delta`` ..., then ``done`` or ``error``.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator
from typing import Any, Literal

import anyio
import structlog
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import Field, field_validator
from starlette.types import Receive, Scope, Send

from chatbot.conversation.events import ConversationId, Event, VisitorId
from chatbot.conversation.interface import Catchup, ConversationLog
from chatbot.conversation.transcript import SYSTEM_PROMPT_NOTE
from chatbot.errors import FrontdeskError
from chatbot.server.admin.common import Body, Reviewer, Stores
from chatbot.server.errors import error_body
from chatbot.server.state import Room
from chatbot.services import Services

log = structlog.get_logger()
router = APIRouter(tags=["playground"])
AUTHOR = "playground"
QUIET_SECONDS = 60.0  # without a sign of a worker
LOOK_SECONDS = 5.0  # look at the log this often although nothing woke us


class Message(Body):
    role: Literal["user", "assistant"]
    content: str = Field(min_length=1, max_length=20000)


class PlaygroundBody(Body):
    """``messages``: the conversation so far, the last one a user's. ``system_prompt``: in place
    of the installation's."""

    version: str = Field(min_length=1, max_length=64)
    messages: list[Message] = Field(min_length=1, max_length=200)
    system_prompt: str = Field("", max_length=20000)

    @field_validator("messages")
    @classmethod
    def _ends_with_a_question(cls, messages: list[Message]) -> list[Message]:
        if messages[-1].role != "user":
            raise ValueError("the last message must be a user's")
        return messages


@router.post(
    "/playground",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-ndjson": {}}}},
)
async def playground(
    user: Reviewer, stores: Stores, request: Request, body: PlaygroundBody
) -> StreamingResponse:
    """JSON lines: ``{"type": "started", version}``, ``{"type": "delta", text}`` ..., then
    ``{"type": "done", text, finish_reason, usage, seconds}`` or ``{"type": "error", code,
    message}``. Closing the connection stops the reply."""
    version = await asyncio.to_thread(stores.versions.get, body.version)
    name = ConversationId(f"play-{secrets.token_hex(16)}")
    await _seed(stores, name, version.id, body)
    log.info("playground.asked", user=user.username, version=version.id)
    return _Lines(_stream(request.app.state.room, name, version.id))


class _Lines(StreamingResponse):
    """Ends the generator in every case; Starlette leaves an abandoned one to the collector."""

    def __init__(self, lines: AsyncGenerator[str, None]) -> None:
        super().__init__(lines, media_type="application/x-ndjson")
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._lines.aclose()


async def _seed(stores: Services, name: ConversationId, version: str, body: PlaygroundBody) -> None:
    """Write the history while a "person" holds the conversation, so that no reply begins; giving
    it back to the bot then asks for one."""
    conversations = stores.log
    await conversations.create(
        name, site="", visitor=VisitorId(AUTHOR), kind="playground", pinned_version=version
    )
    await conversations.change_status(name, "human", reason=AUTHOR, actor=AUTHOR, agent=AUTHOR)
    if body.system_prompt:
        await conversations.append_note(
            name,
            text=body.system_prompt,
            author=AUTHOR,
            client_message_id=SYSTEM_PROMPT_NOTE,
        )
    for n, message in enumerate(body.messages):
        await conversations.append_message(
            name,
            role="visitor" if message.role == "user" else "agent",
            text=message.content,
            client_message_id=f"seed-{n}",
            author=AUTHOR,
        )
    await conversations.change_status(name, "bot", reason=AUTHOR, actor=AUTHOR)


async def _stream(room: Room, name: ConversationId, version: str) -> AsyncGenerator[str, None]:
    conversations = room.services.log
    finished = False
    try:
        with room.hub.watch(name) as watcher:
            follower = _Follower(version)
            loop = asyncio.get_running_loop()
            heard = loop.time()
            while not follower.finished:
                lines = follower.take(await conversations.catch_up(name, None, None))
                for line in lines:
                    yield _line(line)
                if lines:
                    heard = loop.time()
                elif loop.time() - heard > QUIET_SECONDS:
                    yield _line(_problem("busy", "no worker writes: is one running?"))
                    return
                if not follower.finished:
                    try:
                        async with asyncio.timeout(LOOK_SECONDS):
                            await watcher.wait()
                    except TimeoutError:
                        continue
            finished = True
    except FrontdeskError as error:
        yield _line({"type": "error", **error_body(error)["error"]})
    except Exception:
        log.exception("playground.failed")
        yield _line(_problem("internal", "something went wrong; the server's log says what"))
    finally:
        if not finished:
            with anyio.move_on_after(10, shield=True):
                await _abandon(conversations, name)


class _Follower:
    """Turns what the log holds into lines, each once."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._started = False
        self._shown = ""
        self.finished = False

    def take(self, catchup: Catchup) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        end = next(
            (e for e in catchup.events if e.type in ("reply.completed", "reply.failed")), None
        )
        if end is not None:
            self.finished = True
            return self._end(end)
        if catchup.live is not None:
            lines += self._start(catchup.live.version or self._version)
            lines += self._grow(catchup.live.text)
        return lines

    def _end(self, event: Event) -> list[dict[str, Any]]:
        data = event.data
        if event.type == "reply.failed":
            return [_problem("reply_failed", str(data.get("reason") or "the reply failed"))]
        names = ("text", "finish_reason", "usage", "seconds")
        return [
            *self._start(str(data["version"])),
            *self._grow(str(data["text"])),
            {"type": "done", **{name: data.get(name) for name in names}},
        ]

    def _start(self, version: str) -> list[dict[str, Any]]:
        if self._started:
            return []
        self._started = True
        return [{"type": "started", "version": version}]

    def _grow(self, text: str) -> list[dict[str, Any]]:
        new = text[len(self._shown) :]
        self._shown = text
        return [{"type": "delta", "text": new}] if new else []


async def _abandon(conversations: ConversationLog, name: ConversationId) -> None:
    """Nobody listens any more: closing ends the running reply, or the job that waits."""
    try:
        await conversations.change_status(name, "closed", reason=AUTHOR, actor=AUTHOR)
    except FrontdeskError as error:
        log.warning("playground.not_closed", error=str(error))


def _problem(code: str, message: str) -> dict[str, Any]:
    return {"type": "error", "code": code, "message": message}


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
