"""A call over a websocket, ``/v1/assist/sessions/{id}/stream``: fragments in; transcript, summary,
drafts and hints out. As every socket it is a cursor: what changed is read from the log, the
partials and the board, and only what differs from what was sent is sent."""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any, assert_never

import structlog
from fastapi import APIRouter, WebSocket

from chatbot import protocol
from chatbot.assist.board import DraftSet
from chatbot.conversation.events import ConversationId, Event
from chatbot.conversation.interface import Catchup
from chatbot.crew import run_together
from chatbot.errors import FrontdeskError, ProtocolViolation
from chatbot.server.calls import schema
from chatbot.server.calls.access import Caller, find_caller, open_call
from chatbot.server.calls.desk import CallDesk
from chatbot.server.calls.view import View, call_view
from chatbot.server.limits import limit_of
from chatbot.server.sockets import Peer, read_log, run_socket

log = structlog.get_logger()
router = APIRouter()


@router.websocket("/v1/assist/sessions/{session_id}/stream")
async def stream(websocket: WebSocket, session_id: str) -> None:
    """See docs/calls.md for the frames and :mod:`chatbot.protocol` for the close codes."""
    await run_socket(websocket, "call", partial(_session, session_id))


async def _session(session_id: str, peer: Peer) -> None:
    frame = schema.parse_stream_frame(await peer.hello())
    if not isinstance(frame, schema.StreamHello):
        raise ProtocolViolation(f"expected hello as the first frame, got {frame.type}")
    who = await find_caller(peer.room.services, frame.token)
    head = await open_call(peer.room.services, who, session_id)
    peer.expires_at = who.expires_at
    peer.name(conversation_id=head.conversation_id)
    call = _Stream(peer, who, frame.token, head.conversation_id)
    await run_together(call.write(), call.read())


class _Stream:
    def __init__(self, peer: Peer, who: Caller, token: str, name: ConversationId) -> None:
        self._peer = peer
        self._room = peer.room
        self._services = peer.room.services
        self._calls = CallDesk(peer.room)
        self._who = who
        self._token = token
        self._name = name
        self._events: list[Event] = []
        self._cursor: tuple[str, int] | None = None
        self._told: View = {}

    # -- out

    async def write(self) -> None:
        """For ever: send what changed since it was last sent."""
        with self._room.hub.watch(self._name) as watcher:
            await self._calls.ask(self._name)
            self._told = await self._view()
            await self._peer.send({"type": "welcome", **self._told})
            while True:
                with suppress(TimeoutError):  # partials end without anybody saying so
                    async with asyncio.timeout(self._services.settings.call_partial_seconds):
                        await watcher.wait()
                watcher.take_drafts()
                fresh = await self._view()
                told, self._told = self._told, fresh
                for frame in changes(told, fresh):
                    await self._peer.send(frame)

    async def _view(self) -> View:
        log, seconds = self._services.log, self._services.settings.call_partial_seconds
        catchup = await read_log(self._room.limits, self._catch_up)
        partials = await read_log(self._room.limits, lambda: log.partials(self._name, seconds))
        drafts: DraftSet | None = None
        with suppress(FrontdeskError):
            drafts = await self._calls.board.get(self._name)
        return call_view(catchup, partials, drafts)

    async def _catch_up(self) -> Catchup:
        """The whole log, of which only what is new was read."""
        epoch, offset = self._cursor or (None, None)
        found = await self._services.log.catch_up(self._name, epoch, offset)
        if not found.recovered:
            self._events = []
        self._events = [*self._events, *found.events]
        self._cursor = (found.head.epoch, found.head.offset)
        return Catchup(found.head, found.recovered, self._events, found.live)

    # -- in

    async def read(self) -> None:
        """For ever: take a frame. A refused request is answered with ``error``, the socket stays;
        a frame that breaks the protocol ends it."""
        while True:
            frame = schema.parse_stream_frame(await self._peer.receive())
            try:
                await self._take(frame)
            except ProtocolViolation:
                raise
            except FrontdeskError as problem:
                if problem.http_status >= 500:
                    log.warning("call.not_done", frame=frame.type, error=str(problem))
                self._room.metrics.limited(limit_of(problem))
                await self._peer.send(protocol.error_of(problem, **_about(frame)))

    async def _take(self, frame: schema.StreamFrame) -> None:
        if isinstance(frame, protocol.Ping):
            await self._peer.send(protocol.pong())
            return
        if isinstance(frame, schema.StreamHello):
            raise ProtocolViolation("hello was already received on this socket")
        # looked up again each time: a revoked key is out at once
        who = await find_caller(self._services, self._token)
        head = await open_call(self._services, who, self._name)
        match frame:
            case schema.FragmentsSend():
                heard = await self._calls.hear(who, head, frame.fragments)
                results = [one.to_wire() for one in heard]
                await self._peer.send(
                    _done("fragments.accepted", frame.request_id, results=results)
                )
            case schema.FeedbackSend():
                await self._calls.feedback(who, head, frame)
                await self._peer.send(_done("feedback.accepted", frame.request_id))
            case schema.CloseSend():
                await self._calls.close(who, head, frame.reason)
                await self._peer.send(_done("close.accepted", frame.request_id))
            case _:
                assert_never(frame)


def changes(told: View, fresh: View) -> list[View]:
    """Frames that bring a client from one view of the call to another. Pure."""
    frames: list[View] = []
    before = {line["id"]: line for line in told["transcript"]}
    after = {line["id"]: line for line in fresh["transcript"]}
    lines = [line for name, line in after.items() if before.get(name) != line]
    gone = sorted(before.keys() - after.keys())
    if lines or gone:
        frames.append({"type": "transcript", "lines": lines, "gone": gone})
    if fresh["summary"] != told["summary"]:
        frames.append({"type": "summary", **fresh["summary"]})
    old, new = told["suggestions"], fresh["suggestions"]
    if old is not None and (new is None or new["suggestions_id"] != old["suggestions_id"]):
        name = old["suggestions_id"]
        frames.append({"type": "suggestions.withdrawn", "suggestions_id": name})
    if new is not None and new != old:
        frames.append({"type": "suggestions", **new})
    state = {name: fresh[name] for name in ("status", "agent", "reason")}
    if any(told[name] != value for name, value in state.items()):
        frames.append({"type": "status", **state})
    return frames


def _done(kind: str, request_id: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "request_id": request_id, **more}


def _about(frame: schema.StreamFrame) -> dict[str, str]:
    request_id = getattr(frame, "request_id", None)
    return {} if request_id is None else {"request_id": request_id}
