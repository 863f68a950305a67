"""The agents' socket: the list, watching, taking over, notes."""

import asyncio
from typing import Any

import pytest

from chatbot.server.auth import signer_of
from chatbot.server.limits import SocketLimits
from chatbot.server.staff import create_staff, delete_staff
from chatbot.services import Services
from tests.chatbot.server.conftest import staff_token
from tests.chatbot.server.room import (
    Running,
    ScriptedWorker,
    Tab,
    chat_tab,
    desk_tab,
    open_tab,
    running,
    until,
)

PIECES = ["Let ", "me ", "look."]


async def _say(tab: Tab, text: str, message_id: str) -> str:
    """A visitor writes; returns the conversation's id."""
    await tab.send("message.send", client_message_id=message_id, text=text)
    await tab.receive_until("message.accepted")
    return str(tab.welcome["conversation_id"])


async def _watch(desk: Tab, conversation_id: str, **cursor: Any) -> Any:
    await desk.send("conversation.watch", conversation_id=conversation_id, **cursor)
    return await desk.receive_until("conversation.watched", conversation_id=conversation_id)


async def test_hello_needs_a_staff_token(server: Running) -> None:
    visitor = await server.token()
    create_staff(server.services.database, "test", "carl", "a long password", "agent")
    expired, _ = signer_of(server.services).issue_staff("carl", -1)
    stranger, _ = signer_of(server.services).issue_staff("nobody", 1)
    for token in (visitor, expired, stranger, "", "x"):
        async with open_tab(server, "/v1/desk") as tab:
            await tab.send("hello", token=token)
            assert await tab.closed() == (4401, "")
            assert tab.seen[0]["code"] == "not_authenticated"


async def test_the_list(server: Running, anna: str) -> None:
    async with chat_tab(server) as silent, chat_tab(server) as visitor:
        first = await _say(visitor, "I need help", "m-1")
        async with desk_tab(server, anna) as desk:
            assert desk.welcome["username"] == "anna"
            assert desk.welcome["role"] == "agent"
            (line,) = desk.welcome["conversations"]  # where nobody wrote is not listed
            assert line["conversation_id"] == first
            assert line["preview"] == "I need help"
            assert line["status"] == "bot"
            assert line["site"] == "demo"
            second = await _say(silent, "Me too " * 100, "m-1")
            listed = await desk.receive_until("conversation.listed", conversation_id=second)
            assert listed["preview"] == ("Me too " * 100)[:200]
            await visitor.send("handoff.request")
            waiting = await desk.receive_until("conversation.listed", conversation_id=first)
            assert waiting["status"] == "waiting"
            await desk.send("conversation.close", conversation_id=first, reason="solved")
            closed = await desk.receive_until(
                "conversation.listed", conversation_id=first, status="closed"
            )
            assert closed["preview"] == "I need help"
            seen = await visitor.receive_until("status.changed", status="closed")
            assert seen["actor"] == "anna"
            assert "reason" not in seen  # what staff write there is for staff
        async with desk_tab(server, anna) as again:
            assert [line["conversation_id"] for line in again.welcome["conversations"]] == [second]


async def test_many_changes_are_few_lines(services: Services) -> None:
    anna = staff_token(services, "anna")
    async with (
        running(services, limits=SocketLimits(queue_interval=0.3)) as server,
        desk_tab(server, anna) as desk,
        chat_tab(server) as visitor,
    ):
        for number in range(20):
            conversation_id = await _say(visitor, f"message {number}", f"m-{number}")
        await desk.receive_until(
            "conversation.listed", conversation_id=conversation_id, preview="message 19"
        )
        assert len(desk.seen) < 10


async def test_watching_shows_everything_live(server: Running, anna: str) -> None:
    gate = asyncio.Semaphore(0)
    worker = ScriptedWorker(server.services, PIECES, gate)
    async with (
        worker.at_work(),
        chat_tab(server) as visitor,
        desk_tab(server, anna) as desk,
    ):
        conversation_id = await _say(visitor, "hello", "m-1")
        await visitor.receive_until("reply.started")
        gate.release()
        await visitor.receive_until("reply.delta")
        opened = await _watch(desk, conversation_id)
        assert opened["recovered"] is False
        assert [event["type"] for event in opened["events"]] == ["message.created"]
        assert opened["live_reply"]["text"] == PIECES[0]
        assert opened["status"] == "bot"
        gate.release()
        delta = await desk.receive_until("reply.delta", conversation_id=conversation_id)
        assert (delta["from_char"], delta["text"]) == (len(PIECES[0]), PIECES[1])
        gate.release()
        done = await desk.receive_until("reply.completed")
        assert done["conversation_id"] == conversation_id
        assert done["usage"] == {"completion_tokens": len(PIECES)}  # staff see it all
        await visitor.send("typing")
        await desk.receive_until("typing", conversation_id=conversation_id)


async def test_a_watch_resumes_from_its_cursor(server: Running, anna: str) -> None:
    async with chat_tab(server) as visitor, desk_tab(server, anna) as desk:
        conversation_id = await _say(visitor, "one", "m-1")
        opened = await _watch(desk, conversation_id)
        await desk.send("conversation.unwatch", conversation_id=conversation_id)
        await _say(visitor, "two", "m-2")
        again = await _watch(desk, conversation_id, epoch=opened["epoch"], offset=opened["offset"])
        assert again["recovered"] is True
        assert [event["text"] for event in again["events"]] == ["two"]
        created = [f for f in desk.seen if f["type"] == "message.created"]
        assert created == []  # while unwatched nothing came


async def test_taking_over_and_giving_back(server: Running, anna: str) -> None:
    gate = asyncio.Semaphore(0)
    worker = ScriptedWorker(server.services, PIECES, gate)
    async with (
        worker.at_work(),
        chat_tab(server) as visitor,
        desk_tab(server, anna) as desk,
    ):
        conversation_id = await _say(visitor, "hello", "m-1")
        await visitor.receive_until("reply.started")
        gate.release()
        await visitor.receive_until("reply.delta")
        await desk.send("conversation.claim", conversation_id=conversation_id)
        cut = await visitor.receive_until("reply.completed")
        assert (cut["finish_reason"], cut["text"]) == ("handoff", PIECES[0])
        status = await visitor.receive_until("status.changed")
        assert (status["status"], status["agent"]) == ("human", "anna")
        for _ in range(10):
            gate.release()
        await until(lambda: worker.outcomes == ["lost"])

        await desk.send(
            "message.send",
            conversation_id=conversation_id,
            client_message_id="a-1",
            text="Anna here",
        )
        accepted = await desk.receive_until("message.accepted")
        assert accepted["conversation_id"] == conversation_id
        said = await visitor.receive_until("message.created", role="agent")
        assert (said["text"], said["author"]) == ("Anna here", "anna")
        await _say(visitor, "thanks", "m-2")
        assert worker.outcomes == ["lost"]  # the bot is silent

        await desk.send("conversation.release", conversation_id=conversation_id)
        await visitor.receive_until("status.changed", status="bot")
        answered = await visitor.receive_until("reply.completed")
        assert answered["text"] == "".join(PIECES)
        kinds = [frame["type"] for frame in visitor.seen]
        quiet = kinds[kinds.index("status.changed") : kinds.index("message.created", 5)]
        assert not [kind for kind in quiet if kind.startswith("reply.")]


async def test_two_agents_claim_at_once(server: Running, anna: str, ben: str) -> None:
    async with (
        chat_tab(server) as visitor,
        desk_tab(server, anna) as one,
        desk_tab(server, ben) as two,
    ):
        conversation_id = await _say(visitor, "hello", "m-1")
        for desk in (one, two):
            await desk.send("conversation.claim", conversation_id=conversation_id)
        await asyncio.gather(one.drain(), two.drain())
        errors = {
            name: [frame for frame in desk.seen if frame["type"] == "error"]
            for name, desk in (("anna", one), ("ben", two))
        }
        (winner,) = (name for name, found in errors.items() if not found)
        (loser,) = (name for name, found in errors.items() if found)
        (error,) = errors[loser]
        assert error["code"] == "conflict"
        assert error["conversation_id"] == conversation_id
        assert winner in error["message"]
        head = await server.services.log.head(conversation_id)  # type: ignore[arg-type]
        assert head is not None
        assert head.agent == winner


async def test_what_another_agent_holds(server: Running, anna: str, ben: str) -> None:
    async with (
        chat_tab(server) as visitor,
        desk_tab(server, anna) as one,
        desk_tab(server, ben) as two,
        desk_tab(server, server.services.admin_token) as boss,
    ):
        conversation_id = await _say(visitor, "hello", "m-1")
        about = {"conversation_id": conversation_id}
        await one.send("conversation.claim", **about)
        await visitor.receive_until("status.changed")
        for kind, fields in (
            ("conversation.claim", {}),
            ("conversation.release", {}),
            ("conversation.close", {}),
            ("message.send", {"client_message_id": "b-1", "text": "me too"}),
        ):
            await two.send(kind, **about, **fields)
            error = await two.receive_until("error")
            assert error["code"] == "conflict", kind
            assert "anna" in error["message"], kind
            assert error["conversation_id"] == conversation_id
        await one.send("conversation.claim", **about)  # the same click again
        assert not [frame for frame in await one.drain() if frame["type"] == "error"]
        await boss.send("conversation.release", **about)
        await visitor.receive_until("status.changed", status="bot")


async def test_notes_never_reach_the_visitor(server: Running, anna: str, ben: str) -> None:
    async with (
        chat_tab(server) as visitor,
        desk_tab(server, anna) as one,
        desk_tab(server, ben) as two,
    ):
        conversation_id = await _say(visitor, "hello", "m-1")
        await _watch(two, conversation_id)
        for _ in range(2):  # a resend makes no second note
            await one.send(
                "note.add",
                conversation_id=conversation_id,
                client_message_id="n-1",
                text="a private remark",
            )
        accepted = [await one.receive_until("message.accepted") for _ in range(2)]
        assert [frame["duplicate"] for frame in accepted] == [False, True]
        note = await two.receive_until("note.created")
        assert (note["text"], note["author"]) == ("a private remark", "anna")
        await visitor.drain()
        assert "private" not in str(visitor.seen)


@pytest.mark.parametrize(
    ("kind", "fields", "code"),
    [
        ("conversation.watch", {"conversation_id": "c-none"}, "not_found"),
        ("conversation.claim", {"conversation_id": "c-none"}, "not_found"),
        ("conversation.close", {"conversation_id": "c-none"}, "not_found"),
        (
            "message.send",
            {"conversation_id": "c-none", "client_message_id": "a", "text": "hi"},
            "not_found",
        ),
        (
            "note.add",
            {"conversation_id": "c-none", "client_message_id": "a", "text": " "},
            "refused",
        ),
    ],
)
async def test_what_cannot_be_done_is_said(
    server: Running, anna: str, kind: str, fields: dict[str, str], code: str
) -> None:
    async with desk_tab(server, anna) as desk:
        await desk.send(kind, **fields)
        error = await desk.receive_until("error")
        assert error["code"] == code
        assert error["conversation_id"] == "c-none"
        assert error.get("client_message_id") == fields.get("client_message_id")
        await desk.drain()  # the socket is open still


@pytest.mark.parametrize("text", ["{", '{"type": "reply.stop", "reply_id": "r"}'])
async def test_a_frame_that_breaks_the_protocol_ends_the_desk(
    server: Running, anna: str, text: str
) -> None:
    async with desk_tab(server, anna) as desk:
        await desk.socket.send(text)
        assert await desk.closed() == (4400, "")


async def test_a_removed_account_loses_its_desk(services: Services) -> None:
    anna = staff_token(services, "anna")
    async with (
        running(services, limits=SocketLimits(staff_recheck=0.1)) as server,
        desk_tab(server, anna) as desk,
    ):
        await asyncio.to_thread(delete_staff, services.database, "test", "anna")
        assert await desk.closed() == (4401, "")


async def test_a_reset_log_is_shown_anew(server: Running, anna: str, redis: Any) -> None:
    async with chat_tab(server) as visitor, desk_tab(server, anna) as desk:
        conversation_id = await _say(visitor, "hello", "m-1")
        await _watch(desk, conversation_id)
        await redis.flushdb()
        server.room.hub._wake(None)
        error = await desk.receive_until("error")
        assert (error["code"], error["conversation_id"]) == ("not_found", conversation_id)
