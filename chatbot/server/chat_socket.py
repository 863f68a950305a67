"""The visitor's websocket, ``/v1/chat``.

Two tasks per socket. The reader takes the visitor's frames and writes to the log; the writer
waits to be woken, reads what is after its cursor and sends it. Neither keeps data of its own, so
a reconnecting client loses nothing, and closing the socket never cancels a reply.
"""

import asyncio
import hashlib
import hmac
import json
import secrets
from typing import assert_never

import structlog
from fastapi import APIRouter, WebSocket

from chatbot import protocol
from chatbot.conversation.events import ConversationId, ReplyId, VisitorId
from chatbot.conversation.interface import Catchup
from chatbot.crew import run_together
from chatbot.errors import (
    ConversationFull,
    Erased,
    FrontdeskError,
    NotAllowed,
    NotFound,
    Overloaded,
    ProtocolViolation,
)
from chatbot.protocol import SocketState
from chatbot.server.auth import VisitorClaims, check_origin, signer_of
from chatbot.server.channels import lives_elsewhere
from chatbot.server.follow import Follower, LogReset, live_frame, seen_events, visitor_view
from chatbot.server.hub import Watcher
from chatbot.server.limits import limit_of
from chatbot.server.sockets import Peer, read_log, run_socket
from chatbot.tracing import current_traceparent, span

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
    settings, counted = peer.room.services.settings, peer.room.open_sockets
    subject = f"{claims.site}:{claims.visitor}"
    async with (
        counted.hold("sockets_per_visitor", subject, settings.sockets_per_visitor),
        counted.hold("sockets_per_site", claims.site, settings.sockets_per_site),
    ):
        peer.lease = peer.room.frame_lease(subject, peer.address)
        conversation_id = await _conversation(peer, claims, frame)
        peer.name(conversation_id=conversation_id)
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


async def _conversation(peer: Peer, claims: VisitorClaims, hello: protocol.Hello) -> ConversationId:
    """The conversation that ``hello`` means; begun when it is the main one or a new one.

    Raises:
        NotFound: it names one that does not exist (any more).
        NotAllowed: it names one of another visitor or site.
        RateLimited: too many were begun from this address.
    """
    room = peer.room
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
        head = None if hello.new_conversation else await store.head(conversation_id)
        if head is None:
            await room.conversation_rate.take(peer.address, "new conversations from this address")
            head = await store.create(
                conversation_id, site=claims.site, visitor=VisitorId(claims.visitor)
            )
    owner = (head.site, head.visitor, head.kind)
    # a call has the same visitor as the customer's chats, and is the agents' alone
    if owner != (claims.site, claims.visitor, "chat") or lives_elsewhere(head.conversation_id):
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
        self._site = claims.site
        self._visitor = claims.visitor
        self._subject = f"{claims.site}:{claims.visitor}"
        self._id = conversation_id
        self._watcher = watcher
        self._follower: Follower
        self._facts = claims.facts  # that the site vouches for
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
            kept = protocol.MessageSend | protocol.VisitorDescribe | protocol.ContactLeave
            about = (
                {"client_message_id": frame.client_message_id} if isinstance(frame, kept) else {}
            )
            try:
                await self._take(frame)
            except (ProtocolViolation, LogReset, Erased):
                raise
            except NotFound:
                raise _gone() from None
            except FrontdeskError as problem:
                self._room.metrics.limited(limit_of(problem))
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
                await self._count_message()
                await self._log.give_rating(self._id, score=frame.score, comment=frame.comment)
            case protocol.VisitorDescribe():
                await self._describe(frame)
            case protocol.ContactLeave():
                await self._leave_contact(frame)
            case protocol.PeopleAsk():
                people = await self._room.people.ask(self._site, self._id)
                await self._peer.send(
                    protocol.people_state(
                        people.open, people.opens_at, people.place, people.expected_wait
                    )
                )
            case protocol.ConversationEnd():
                await self._end()
            case protocol.Hello():
                raise ProtocolViolation("hello was already received on this socket")
            case _:
                assert_never(frame)

    async def _send_message(self, frame: protocol.MessageSend) -> None:
        room, settings = self._room, self._room.services.settings
        text = protocol.check_text(frame.text, settings.max_message_chars)
        if self._follower.offset >= settings.max_conversation_events:
            raise ConversationFull(
                "this conversation has become too long: begin a new one",
                limit="max_conversation_events",
            )
        with span("chat.message", conversation__id=self._id, site=self._site) as current:
            await self._count_message()
            await self._check_bot()
            accepted = await self._log.append_message(
                self._id,
                role="visitor",
                text=text,
                client_message_id=frame.client_message_id,
                author=self._visitor,
                trace=current_traceparent(),
            )
            current.set_attribute("offset", accepted.offset)
        if not accepted.duplicate:
            room.metrics.message("visitor")
            room.queue.note_message()
        await self._vouch()
        await self._peer.send(
            protocol.message_accepted(frame.client_message_id, accepted.offset, accepted.duplicate)
        )

    async def _vouch(self) -> None:
        """Put what the site's own back end says of its customer into the log, once."""
        if not self._facts:
            return
        digest = hashlib.sha256(json.dumps(dict(self._facts), sort_keys=True).encode()).hexdigest()
        await self._log.describe_visitor(
            self._id,
            facts=self._facts,
            source="identity",
            client_message_id=f"identity-{digest[:32]}",
        )
        self._facts = {}

    async def _describe(self, frame: protocol.VisitorDescribe) -> None:
        await self._room.message_rate.take(self._subject, "messages")
        accepted = await self._log.describe_visitor(
            self._id, facts=frame.facts, source="page", client_message_id=frame.client_message_id
        )
        await self._peer.send(
            protocol.message_accepted(frame.client_message_id, accepted.offset, accepted.duplicate)
        )

    async def _leave_contact(self, frame: protocol.ContactLeave) -> None:
        """First to people, then the message: so the bot is not asked to answer it. Each step may
        be done again, when the frame is sent again after a cut."""
        protocol.check_text(frame.text, self._room.services.settings.max_message_chars)
        await self._request_handoff("the visitor left an address")
        facts = {"name": frame.name.strip(), "email": frame.email}
        await self._log.describe_visitor(
            self._id,
            facts={name: value for name, value in facts.items() if value},
            source="form",
            client_message_id=frame.client_message_id,
        )
        await self._send_message(
            protocol.MessageSend(
                type="message.send", client_message_id=frame.client_message_id, text=frame.text
            )
        )

    async def _end(self) -> None:
        """Over, as the visitor says; saying it twice is saying it once."""
        head = await self._log.head(self._id)
        if head is not None and head.offset > 0:
            await self._log.change_status(
                self._id, "closed", reason="the visitor ended it", actor="visitor"
            )

    async def _count_message(self) -> None:
        """Raises RateLimited."""
        await self._room.message_rate.take(self._subject, "messages")
        await self._room.address_rate.take(self._peer.address, "messages from this address")

    async def _check_bot(self) -> None:
        """Whether the bot may answer one more message; one that people answer is always taken.

        Raises:
            BudgetSpent, Overloaded
        """
        try:
            await self._room.budgets.check(self._site, self._visitor)
            await self._room.queue.check()
        except Overloaded:
            head = await self._log.head(self._id)
            if head is None or head.status in ("bot", "closed"):
                raise

    async def _typing(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._typed_at >= self._room.limits.typing_interval:
            self._typed_at = now
            await self._room.hub.typing(self._id)

    async def _request_handoff(self, reason: str = "the visitor asked for a person") -> None:
        """Ask for people; asking twice is asking once."""
        head = await self._log.head(self._id)
        if head is not None and head.status in ("waiting", "human"):
            return
        if head is not None and head.status == "closed":  # it has to be the bot's before
            await self._log.change_status(self._id, "bot", reason=reason, actor="visitor")
        await self._log.change_status(self._id, "waiting", reason=reason, actor="visitor")


def _gone() -> LogReset:
    return LogReset("the conversation is not in the log any more: reconnect and reload")
