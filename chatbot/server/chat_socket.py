"""The visitor's websocket, ``/v1/chat``.

Two tasks per socket. The reader takes the visitor's frames and writes to the log; the writer
waits to be woken, reads what is after its cursor and sends it. Neither keeps data of its own, so
a reconnecting client loses nothing, and closing the socket never cancels a reply.
"""

import asyncio
import hashlib
import hmac
import secrets
from typing import assert_never

import structlog
from fastapi import APIRouter, WebSocket

from chatbot import protocol
from chatbot.conversation.events import ConversationId, ReplyId, VisitorId
from chatbot.conversation.interface import Catchup
from chatbot.crew import run_together
from chatbot.errors import Erased, FrontdeskError, NotAllowed, NotFound, ProtocolViolation
from chatbot.protocol import SocketState
from chatbot.server.auth import VisitorClaims, check_origin, signer_of
from chatbot.server.follow import Follower, LogReset, live_frame, seen_events, visitor_view
from chatbot.server.hub import Watcher
from chatbot.server.sockets import Peer, read_log, run_socket
from chatbot.server.state import Room

log = structlog.get_logger()
router = APIRouter()


@router.websocket("/v1/chat")
async def chat(websocket: WebSocket) -> None:
    """See :mod:`chatbot.protocol` for the frames and the close codes."""
    await run_socket(websocket, "chat", _session)


def main_conversation(secret_key: str, site: str, visitor: str) -> ConversationId:
    """Id of the conversation that a visitor gets who names none: always the same one, and only
    we can compute it. So there is no index to keep, two tabs that open at once meet in one
    conversation, and a known customer finds it again on another device."""
    message = f"main-conversation\0{site}\0{visitor}".encode()
    digest = hmac.new(secret_key.encode(), message, hashlib.sha256).hexdigest()
    return ConversationId(f"c-{digest[:32]}")


async def _session(peer: Peer) -> None:
    frame = protocol.parse_visitor_frame(await peer.hello(), SocketState.AWAITING_HELLO)
    assert isinstance(frame, protocol.Hello)  # what the state allows
    claims = await _authenticate(peer, frame.token)
    subject = f"{claims.site}:{claims.visitor}"
    with peer.room.visitor_sockets.hold(subject):
        conversation_id = await _conversation(peer.room, claims, frame)
        structlog.contextvars.bind_contextvars(conversation_id=conversation_id)
        with peer.room.hub.watch(conversation_id) as watcher:
            chat = _Chat(peer, claims, conversation_id, watcher)
            await chat.greet(frame)
            await run_together(chat.read_frames(), chat.write_news())


async def _authenticate(peer: Peer, token: str) -> VisitorClaims:
    """Who is there, from which page.

    Raises:
        NotAuthenticated, OriginRefused, StoreUnavailable
    """
    services = peer.room.services
    claims = signer_of(services).read_visitor(token)
    await asyncio.to_thread(check_origin, services, claims.site, peer.origin, peer.host)
    peer.expires_at = claims.expires_at
    return claims


async def _conversation(room: Room, claims: VisitorClaims, hello: protocol.Hello) -> ConversationId:
    """The conversation that ``hello`` means; begun when it is the main one or a new one.

    Raises:
        NotFound: it names one that does not exist (any more).
        NotAllowed: it names one of another visitor or site.
    """
    store = room.services.log
    if hello.conversation_id is not None:
        head = await store.head(ConversationId(hello.conversation_id))
        if head is None:
            raise NotFound(f"there is no conversation {hello.conversation_id}: begin a new one")
    else:
        conversation_id = (
            ConversationId(f"c-{secrets.token_hex(16)}")
            if hello.new_conversation
            else main_conversation(room.services.secret_key, claims.site, claims.visitor)
        )
        head = await store.create(
            conversation_id, site=claims.site, visitor=VisitorId(claims.visitor)
        )
    if (head.site, head.visitor, head.kind) != (claims.site, claims.visitor, "chat"):
        raise NotAllowed("this conversation is not yours: begin a new one")
    return head.conversation_id


class _Chat:
    """An open socket in its conversation."""

    def __init__(
        self, peer: Peer, claims: VisitorClaims, conversation_id: ConversationId, watcher: Watcher
    ) -> None:
        self._peer = peer
        self._room = peer.room
        self._log = peer.room.services.log
        self._visitor = claims.visitor
        self._subject = f"{claims.site}:{claims.visitor}"
        self._id = conversation_id
        self._watcher = watcher
        self._follower: Follower
        self._typed_at = float("-inf")

    async def greet(self, hello: protocol.Hello) -> None:
        """Send ``welcome`` with what the client lacks."""
        named = hello.conversation_id is not None  # a cursor without a conversation means nothing
        catchup = await self._log.catch_up(
            self._id, hello.epoch if named else None, hello.offset if named else None
        )
        self._follower = Follower(catchup, visitor_view)
        head = catchup.head
        await self._peer.send(
            protocol.welcome(
                self._id,
                head.epoch,
                head.offset,
                catchup.recovered,
                head.status,
                seen_events(catchup, visitor_view),
                live_frame(catchup.live),
            )
        )

    # -- the writer

    async def write_news(self) -> None:
        """For ever: wait for a change, send what is after the cursor."""
        while True:
            await self._watcher.wait()
            for frame in self._follower.advance(await self._catch_up()):
                await self._peer.send(frame)

    async def _catch_up(self) -> Catchup:
        follower = self._follower
        try:
            return await read_log(
                self._room.limits,
                lambda: self._log.catch_up(self._id, follower.epoch, follower.offset),
            )
        except Erased:
            raise
        except NotFound:
            raise _gone() from None

    # -- the reader

    async def read_frames(self) -> None:
        """For ever: take a frame. A refused request is answered with ``error``, the socket stays;
        a frame that breaks the protocol ends it."""
        while True:
            frame = protocol.parse_visitor_frame(await self._peer.receive(), SocketState.OPEN)
            about = {}
            if isinstance(frame, protocol.MessageSend):
                about = {"client_message_id": frame.client_message_id}
            try:
                await self._take(frame)
            except (ProtocolViolation, LogReset, Erased):
                raise
            except NotFound:
                raise _gone() from None
            except FrontdeskError as problem:
                if problem.http_status >= 500:
                    log.warning("chat.not_done", frame=frame.type, error=str(problem))
                await self._peer.send(protocol.error_of(problem, **about))

    async def _take(self, frame: protocol.VisitorFrame) -> None:
        match frame:
            case protocol.MessageSend():
                await self._send_message(frame)
            case protocol.ReplyStop():
                # not running any more: the log has its end, which this socket gets or got
                await self._log.stop_reply(self._id, ReplyId(frame.reply_id))
            case protocol.Typing():
                await self._typing()
            case protocol.Ping():
                await self._peer.send(protocol.pong())
            case protocol.HandoffRequest():
                await self._request_handoff()
            case protocol.RatingGive():
                await self._room.message_rate.take(self._subject, "messages")
                await self._log.give_rating(self._id, score=frame.score, comment=frame.comment)
            case protocol.Hello():
                raise ProtocolViolation("hello was already received on this socket")
            case _:
                assert_never(frame)

    async def _send_message(self, frame: protocol.MessageSend) -> None:
        text = protocol.check_text(frame.text, self._room.services.settings.max_message_chars)
        await self._room.message_rate.take(self._subject, "messages")
        accepted = await self._log.append_message(
            self._id,
            role="visitor",
            text=text,
            client_message_id=frame.client_message_id,
            author=self._visitor,
        )
        if not accepted.duplicate:
            self._room.metrics.message("visitor")
        await self._peer.send(
            protocol.message_accepted(frame.client_message_id, accepted.offset, accepted.duplicate)
        )

    async def _typing(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._typed_at >= self._room.limits.typing_interval:
            self._typed_at = now
            await self._room.hub.typing(self._id)

    async def _request_handoff(self) -> None:
        """Ask for people; asking twice is asking once."""
        head = await self._log.head(self._id)
        if head is not None and head.status in ("waiting", "human"):
            return
        await self._log.change_status(
            self._id, "waiting", reason="the visitor asked for a person", actor="visitor"
        )


def _gone() -> LogReset:
    return LogReset("the conversation is not in the log any more: reconnect and reload")
