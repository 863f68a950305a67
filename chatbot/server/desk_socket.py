"""The agents' websocket, ``/v1/desk``: the list of conversations, and any of them live.

One task reads the agent's frames, one keeps the list fresh, and one follows each conversation
that the desk watches. As for visitors, none keeps data: each reads the log with its cursor.
"""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any, assert_never

import structlog
from fastapi import APIRouter, WebSocket

from chatbot import protocol
from chatbot.conversation.events import ConversationId
from chatbot.conversation.interface import Catchup
from chatbot.crew import Crew, end_tasks
from chatbot.errors import (
    FrontdeskError,
    NotFound,
    ProtocolViolation,
    RequestRefused,
    StoreUnavailable,
)
from chatbot.protocol import SocketState
from chatbot.server.auth import StaffClaims, read_staff
from chatbot.server.desk_acts import DeskActs
from chatbot.server.desk_assist import DeskAssist
from chatbot.server.desk_list import Line
from chatbot.server.follow import Follower, LogReset, live_frame, seen_events, staff_view
from chatbot.server.hub import Watcher
from chatbot.server.presence import Agents, DeskPresence
from chatbot.server.sockets import Peer, read_log, run_socket

log = structlog.get_logger()
router = APIRouter()
MOST_WATCHED = 50


@router.websocket("/v1/desk")
async def desk(websocket: WebSocket) -> None:
    """See :mod:`chatbot.protocol` for the frames and the close codes."""
    await run_socket(websocket, "desk", _session)


async def _session(peer: Peer) -> None:
    frame = protocol.parse_desk_frame(await peer.hello(), SocketState.AWAITING_HELLO)
    assert isinstance(frame, protocol.DeskHello)  # what the state allows
    services = peer.room.services
    claims = await asyncio.to_thread(read_staff, services, frame.token)
    peer.expires_at = claims.expires_at
    peer.name(agent=claims.username)
    crew = Crew()
    desk = _Desk(peer, claims, crew)
    crew.spawn(desk.keep_list())
    crew.spawn(desk.read_frames())
    crew.spawn(desk.stay_welcome(frame.token))
    crew.spawn(desk.stay_present())
    try:
        await crew.run()
    finally:
        await desk.leave()


class _Desk:
    """An open desk."""

    def __init__(self, peer: Peer, claims: StaffClaims, crew: Crew) -> None:
        self._peer = peer
        self._room = peer.room
        self._log = peer.room.services.log
        self._user = claims.username
        self._role = claims.role
        self._crew = crew
        self._watched: dict[ConversationId, asyncio.Task[None]] = {}
        self._listed: dict[str, Line] = {}
        self._acts = DeskActs(peer.room, claims)
        self._presence = DeskPresence(peer.room.services.redis, claims)
        self._agents: Agents | None = None

    async def stay_welcome(self, token: str) -> None:
        """For ever: look whether the account is still there.

        Raises:
            NotAuthenticated: it was removed, or the login has expired.
        """
        while True:
            await asyncio.sleep(self._room.limits.staff_recheck)
            with suppress(StoreUnavailable):  # asked again next time
                await asyncio.to_thread(read_staff, self._room.services, token)

    # -- presence

    async def stay_present(self) -> None:
        """For ever: renew this desk's entry, and look whose was not renewed."""
        changed = True
        while True:
            await self._show_presence(changed=changed)
            changed = False
            await asyncio.sleep(self._room.presence.interval)
            self._room.hub.look_at_presence()

    async def leave(self) -> None:
        """The desk closes: take its entry away."""
        await self._presence.remove()

    async def _show_presence(self, *, changed: bool) -> None:
        await self._presence.put([str(name) for name in self._watched], changed=changed)

    async def _tell_presence(self) -> None:
        agents = await self._room.presence.agents()
        if agents is not None and agents != self._agents:
            self._agents = agents
            await self._peer.send(protocol.presence(agents))

    # -- the list

    async def keep_list(self) -> None:
        """Send ``welcome``, then each line that is new or changed; at most every
        ``queue_interval`` seconds, so that a busy night does not flood a desk."""
        with self._room.hub.watch_all() as watcher:
            lines = await self._room.desk_list.all()
            self._listed = {line["conversation_id"]: line for line in lines}
            await self._peer.send(protocol.desk_welcome(self._user, self._role, lines))
            await self._tell_presence()
            while True:
                await watcher.wait()
                await asyncio.sleep(self._room.limits.queue_interval)
                if watcher.take_presence():
                    await self._tell_presence()
                changed = watcher.take()
                for line in await read_log(self._room.limits, partial(self._news, changed)):
                    await self._peer.send(line)

    async def _news(self, changed: set[ConversationId] | None) -> list[Line]:
        """Lines that differ from what the desk has; ``changed`` None means look at all."""
        fresh: dict[str, Line] = {}
        if changed is None:
            fresh = {line["conversation_id"]: line for line in await self._room.desk_list.all()}
            changed = {ConversationId(name) for name in self._listed.keys() - fresh.keys()}
        for conversation_id in changed:
            line = await self._room.desk_list.one(conversation_id)
            if line is None and conversation_id in self._listed:  # it was erased
                line = {**self._listed[conversation_id], "status": "closed", "preview": ""}
            if line is not None:
                fresh[conversation_id] = line
        news = [line for name, line in fresh.items() if self._listed.get(name) != line]
        for line in news:
            if line["status"] == "closed":
                self._listed.pop(line["conversation_id"], None)
            else:
                self._listed[line["conversation_id"]] = line
        return news

    # -- watching

    async def _watch(self, frame: protocol.ConversationWatch) -> None:
        conversation_id = ConversationId(frame.conversation_id)
        await self._unwatch(conversation_id)
        if len(self._watched) >= MOST_WATCHED:
            raise RequestRefused(f"at most {MOST_WATCHED} conversations at once: close some")
        self._watched[conversation_id] = self._crew.spawn(
            self._follow(conversation_id, frame.epoch, frame.offset)
        )
        await self._show_presence(changed=True)

    async def _unwatch(self, conversation_id: ConversationId) -> None:
        task = self._watched.pop(conversation_id, None)
        if task is not None:
            await end_tasks([task])

    async def _follow(
        self, conversation_id: ConversationId, epoch: str | None, offset: int | None
    ) -> None:
        """Stream one conversation, staff-only events included, until it is unwatched."""
        with self._room.hub.watch(conversation_id) as watcher:
            try:
                assist = DeskAssist(self._peer, self._user, conversation_id)
                follower = await self._open(conversation_id, epoch, offset, assist)
                while True:
                    await watcher.wait()
                    await self._tell_typing(conversation_id, watcher)
                    if watcher.take_drafts():
                        await assist.news()
                    try:
                        catchup = await self._catch_up(conversation_id, follower)
                        frames = follower.advance(catchup)
                    except LogReset:
                        follower = await self._open(conversation_id, None, None, assist)
                        continue
                    for frame in frames:
                        await self._peer.send({**frame, "conversation_id": conversation_id})
                    await assist.look(catchup.head)
            except NotFound as problem:
                self._watched.pop(conversation_id, None)
                await self._peer.send(protocol.error_of(problem, conversation_id=conversation_id))

    async def _open(
        self,
        conversation_id: ConversationId,
        epoch: str | None,
        offset: int | None,
        assist: DeskAssist,
    ) -> Follower:
        """Send ``conversation.watched`` with what the desk lacks."""
        catchup = await read_log(
            self._room.limits, lambda: self._log.catch_up(conversation_id, epoch, offset)
        )
        head = catchup.head
        await self._peer.send(
            protocol.conversation_watched(
                conversation_id=conversation_id,
                epoch=head.epoch,
                offset=head.offset,
                recovered=catchup.recovered,
                status=head.status,
                agent=head.agent,
                events=seen_events(catchup, staff_view),
                live_reply=live_frame(catchup.live),
            )
        )
        await assist.look(head)
        return Follower(catchup, staff_view)

    async def _catch_up(self, conversation_id: ConversationId, follower: Follower) -> Catchup:
        return await read_log(
            self._room.limits,
            lambda: self._log.catch_up(conversation_id, follower.epoch, follower.offset),
        )

    async def _tell_typing(self, conversation_id: ConversationId, watcher: Watcher) -> None:
        if watcher.typing:
            watcher.typing = False
            await self._peer.send(protocol.typing_seen(conversation_id))

    # -- the agent's frames

    async def read_frames(self) -> None:
        """For ever: take a frame. A refused request is answered with ``error``, the socket stays;
        a frame that breaks the protocol ends it."""
        while True:
            frame = protocol.parse_desk_frame(await self._peer.receive(), SocketState.OPEN)
            try:
                await self._take(frame)
            except ProtocolViolation:
                raise
            except FrontdeskError as problem:
                if problem.http_status >= 500:
                    log.warning("desk.not_done", frame=frame.type, error=str(problem))
                await self._peer.send(protocol.error_of(problem, **_about(frame)))

    async def _take(self, frame: protocol.DeskFrame) -> None:
        match frame:
            case protocol.ConversationWatch():
                await self._watch(frame)
            case protocol.ConversationUnwatch():
                await self._unwatch(ConversationId(frame.conversation_id))
                await self._show_presence(changed=True)
            case protocol.ConversationClaim():
                await self._acts.claim(ConversationId(frame.conversation_id))
            case protocol.ConversationRelease():
                await self._acts.release(ConversationId(frame.conversation_id))
            case protocol.ConversationTransfer():
                await self._acts.transfer(
                    ConversationId(frame.conversation_id), frame.agent, frame.reason
                )
            case protocol.ConversationClose():
                await self._acts.close(ConversationId(frame.conversation_id), frame.reason)
            case protocol.TagsSet():
                await self._acts.tag(ConversationId(frame.conversation_id), frame.tags)
            case protocol.AgentSend() | protocol.NoteAdd():
                await self._write(frame)
            case protocol.SuggestionFeedback():
                await self._acts.feedback(frame)
            case protocol.Ping():
                await self._peer.send(protocol.pong())
            case protocol.DeskHello():
                raise ProtocolViolation("hello was already received on this socket")
            case _:
                assert_never(frame)

    async def _write(self, frame: protocol.AgentSend | protocol.NoteAdd) -> None:
        accepted = await self._acts.write(frame)
        await self._peer.send(
            protocol.message_accepted(
                frame.client_message_id,
                accepted.offset,
                accepted.duplicate,
                conversation_id=frame.conversation_id,
            )
        )


def _about(frame: protocol.DeskFrame) -> dict[str, Any]:
    """What an error frame names."""
    names = ("conversation_id", "client_message_id")
    return {name: getattr(frame, name) for name in names if hasattr(frame, name)}
