"""The visitor's socket: streaming, tabs in step, who may see what."""

import asyncio
import time
from typing import Any

import pytest

from chatbot.conversation.events import ConversationId, VisitorId
from chatbot.record.tables import Site
from chatbot.server.auth import signer_of
from chatbot.server.chat_socket import main_conversation
from chatbot.services import Services
from tests.chatbot.server.room import (
    ORIGIN,
    SECRET,
    Running,
    ScriptedWorker,
    chat_tab,
    open_tab,
    until,
)

PIECES = ["Your ", "order ", "is on ", "its way ", "😀", ". Ünïcode ", "too."]
REPLY = "".join(PIECES)


async def _ask(tab: Any, text: str = "Where is it?", message_id: str = "m-1") -> None:
    await tab.send("message.send", client_message_id=message_id, text=text)


async def test_a_reply_streams(server: Running) -> None:
    async with ScriptedWorker(server.services, PIECES).at_work(), chat_tab(server) as tab:
        assert tab.welcome["events"] == []
        assert tab.welcome["offset"] == 0
        assert tab.welcome["status"] == "bot"
        assert tab.welcome["live_reply"] is None
        await _ask(tab)
        done = await tab.receive_until("reply.completed")
        await tab.drain()
        kinds = [frame["type"] for frame in tab.seen]
        assert kinds.count("message.accepted") == 1
        assert kinds.count("message.created") == 1
        created = next(frame for frame in tab.seen if frame["type"] == "message.created")
        accepted = next(frame for frame in tab.seen if frame["type"] == "message.accepted")
        assert created["client_message_id"] == accepted["client_message_id"] == "m-1"
        assert created["offset"] == accepted["offset"] == 1
        assert done["text"] == REPLY
        assert done["finish_reason"] == "end"
        assert done["version"] == "v-test"
        assert "usage" not in done


async def test_pieces_arrive_one_by_one(server: Running) -> None:
    gate = asyncio.Semaphore(0)
    worker = ScriptedWorker(server.services, PIECES, gate)
    async with worker.at_work(), chat_tab(server) as tab:
        await _ask(tab)
        started = await tab.receive_until("reply.started")
        assert started["version"] == "v-test"
        for piece in PIECES:
            gate.release()
            frame = await tab.receive_until("reply.delta")
            assert frame["text"] == piece
        done = await tab.receive_until("reply.completed")
        assert tab.text(started["reply_id"]) == done["text"] == REPLY


async def test_two_tabs_are_in_step(server: Running) -> None:
    token = await server.token()
    gate = asyncio.Semaphore(0)
    worker = ScriptedWorker(server.services, PIECES, gate)
    async with worker.at_work(), chat_tab(server, token) as one, chat_tab(server, token) as two:
        assert one.welcome["conversation_id"] == two.welcome["conversation_id"]
        await _ask(one)
        reply_id = (await two.receive_until("reply.started"))["reply_id"]
        for _ in PIECES:
            gate.release()
        ends = [await tab.receive_until("reply.completed") for tab in (one, two)]
        assert ends[0] == ends[1]
        assert one.text(reply_id) == two.text(reply_id) == REPLY
        assert "message.accepted" not in [frame["type"] for frame in two.seen]


async def test_stop_from_another_tab(server: Running) -> None:
    token = await server.token()
    gate = asyncio.Semaphore(0)
    worker = ScriptedWorker(server.services, PIECES, gate)
    async with worker.at_work(), chat_tab(server, token) as one, chat_tab(server, token) as two:
        await _ask(one)
        reply_id = (await two.receive_until("reply.started"))["reply_id"]
        gate.release()
        await two.receive_until("reply.delta")
        await two.send("reply.stop", reply_id=reply_id)
        for tab in (one, two):
            done = await tab.receive_until("reply.completed")
            assert done["finish_reason"] == "stopped"
            assert done["text"] == PIECES[0]
        await until(lambda: worker.outcomes == ["lost"])  # the work itself has ended
        await two.send("reply.stop", reply_id=reply_id)  # again: nothing happens
        assert await two.drain() == []


async def test_the_same_message_five_times_is_one(server: Running) -> None:
    async with chat_tab(server) as tab:
        for _ in range(5):
            await _ask(tab)
        accepted = [await tab.receive_until("message.accepted") for _ in range(5)]
        assert [frame["offset"] for frame in accepted] == [1] * 5
        assert [frame["duplicate"] for frame in accepted] == [False, True, True, True, True]
        await tab.drain()
        assert [frame["type"] for frame in tab.seen].count("message.created") == 1


async def test_closing_the_socket_does_not_cancel_the_reply(server: Running) -> None:
    token = await server.token()
    gate = asyncio.Semaphore(0)
    worker = ScriptedWorker(server.services, PIECES, gate)
    async with worker.at_work():
        async with chat_tab(server, token) as tab:
            await _ask(tab)
            await tab.receive_until("reply.started")
        for _ in PIECES:
            gate.release()
        await until(lambda: worker.outcomes == ["written"])
        async with chat_tab(server, token) as again:
            assert again.welcome["events"][-1]["text"] == REPLY


async def test_no_bot_text_after_a_hand_over(server: Running) -> None:
    gate = asyncio.Semaphore(0)
    worker = ScriptedWorker(server.services, PIECES, gate)
    async with worker.at_work(), chat_tab(server) as tab:
        await _ask(tab)
        await tab.receive_until("reply.started")
        gate.release()
        await tab.receive_until("reply.delta")
        await tab.send("handoff.request")
        cut = await tab.receive_until("reply.completed")
        assert (cut["finish_reason"], cut["text"]) == ("handoff", PIECES[0])
        status = await tab.receive_until("status.changed")
        assert (status["status"], status["actor"]) == ("waiting", "visitor")
        for _ in PIECES:
            gate.release()
        await until(lambda: worker.outcomes == ["lost"])
        await tab.send("handoff.request")  # asking twice is asking once
        await _ask(tab, "Hello?", "m-2")
        await tab.receive_until("message.created")
        assert [f["type"] for f in await tab.drain() if f["type"].startswith("reply.")] == []


async def test_a_message_during_a_reply_is_answered_after_it(server: Running) -> None:
    gate = asyncio.Semaphore(0)
    worker = ScriptedWorker(server.services, PIECES, gate)
    async with worker.at_work(), chat_tab(server) as tab:
        await _ask(tab)
        first = (await tab.receive_until("reply.started"))["reply_id"]
        await _ask(tab, "And one more thing", "m-2")
        await tab.receive_until("message.created", client_message_id="m-2")
        for _ in range(2 * len(PIECES)):
            gate.release()
        done = await tab.receive_until("reply.completed", reply_id=first)
        assert done["text"] == REPLY
        second = await tab.receive_until("reply.completed")
        assert second["reply_id"] != first


async def test_rating(server: Running) -> None:
    async with chat_tab(server) as tab:
        await tab.send("rating.give", score=4, comment="fine")
        frame = await tab.receive_until("rating.given")
        assert (frame["score"], frame["comment"]) == (4, "fine")


async def test_staff_only_events_never_leave(server: Running) -> None:
    token = await server.token()
    async with chat_tab(server, token) as tab:
        conversation_id = ConversationId(tab.welcome["conversation_id"])
        await server.services.log.append_note(
            conversation_id, text="secret note", author="anna", client_message_id="n-1"
        )
        await _ask(tab)
        created = await tab.receive_until("message.created")
        assert created["offset"] == 2  # the note has offset 1: a visitor's offsets may skip
        assert "secret note" not in str(tab.seen)
    async with chat_tab(server, token) as again:
        assert "secret note" not in str(again.welcome)
        assert again.welcome["offset"] == 2
        cursor = {"epoch": again.welcome["epoch"], "offset": 0}
    async with chat_tab(server, token, conversation_id=conversation_id, **cursor) as resumed:
        assert resumed.welcome["recovered"] is True
        assert "secret note" not in str(resumed.welcome)


# -- which conversation, and whose


async def test_a_visitor_without_a_conversation_id_gets_the_main_one(server: Running) -> None:
    visitor = await server.visitor()
    async with chat_tab(server, visitor["token"]) as tab:
        main = main_conversation(SECRET, "demo", visitor["visitor_id"])
        assert tab.welcome["conversation_id"] == main
        await _ask(tab)
        await tab.receive_until("message.accepted")
    async with chat_tab(server, visitor["token"]) as again:
        assert again.welcome["conversation_id"] == main
        assert len(again.welcome["events"]) == 1
    async with chat_tab(server, visitor["token"], new_conversation=True) as other:
        assert other.welcome["conversation_id"] != main
        assert other.welcome["events"] == []
        kept = other.welcome["conversation_id"]
    async with chat_tab(server, visitor["token"], conversation_id=kept) as named:
        assert named.welcome["conversation_id"] == kept


def test_main_conversations_differ_by_site_visitor_and_key() -> None:
    ids = {
        main_conversation(key, site, visitor)
        for key in ("k1", "k2")
        for site in ("a", "ab")
        for visitor in ("1", "b1")
    }
    assert len(ids) == 8


@pytest.fixture
def other_site(services: Services) -> str:
    with services.database.session() as session:
        session.add(
            Site(
                name="other",
                origins=["https://other.example"],
                title="",
                welcome="",
                system_prompt="",
                identity_secret="",
                created_at=0,
            )
        )
    return "other"


async def _refused(server: Running, token: str, **hello: Any) -> tuple[int, str]:
    """Close code and error code of a hello that must fail."""
    origin = hello.pop("origin", ORIGIN)
    async with open_tab(server, origin=origin) as tab:
        await tab.send("hello", token=token, **hello)
        code, reason = await tab.closed()
        assert reason == ""
        assert [frame["type"] for frame in tab.seen] == ["error"]
        return code, tab.seen[0]["code"]


async def test_a_foreign_conversation_is_refused(server: Running, other_site: str) -> None:
    log = server.services.log
    signer = signer_of(server.services)
    for name, site, visitor in (
        ("theirs", "demo", "v-theirs"),
        ("1", "demo", "1"),
        ("elsewhere", other_site, "v-mine"),
    ):
        await log.create(ConversationId(name), site=site, visitor=VisitorId(visitor))
    await log.create(
        ConversationId("played"), site="demo", visitor=VisitorId("v-mine"), kind="playground"
    )
    mine, _ = signer.issue_visitor("demo", "v-mine", 1)
    for name in ("theirs", "1", "elsewhere", "played"):
        assert await _refused(server, mine, conversation_id=name) == (4403, "not_allowed"), name
    one, _ = signer.issue_visitor("demo", "1", 1)
    async with chat_tab(server, one, conversation_id="1") as tab:
        assert tab.welcome["conversation_id"] == "1"
    for near in ("01", "1.0", "I"):
        token, _ = signer.issue_visitor("demo", near, 1)
        assert await _refused(server, token, conversation_id="1") == (4403, "not_allowed")


async def test_an_unknown_conversation_is_to_be_begun_anew(server: Running) -> None:
    token = await server.token()
    assert await _refused(server, token, conversation_id="c-gone") == (4409, "not_found")


async def test_tokens(server: Running, other_site: str) -> None:
    signer = signer_of(server.services)
    expired, _ = signer.issue_visitor("demo", "v-1", -1)
    staff, _ = signer.issue_staff("anna", 1)
    good = await server.token()
    wrong = [expired, staff, "", "x", "a.b.c", good[:-2], good + "x", server.services.admin_token]
    for token in wrong:
        assert await _refused(server, token) == (4401, "not_authenticated"), token
    foreign, _ = signer.issue_visitor(other_site, "v-1", 1)
    assert await _refused(server, foreign) == (4403, "origin_refused")
    unknown, _ = signer.issue_visitor("no-such-site", "v-1", 1)
    assert await _refused(server, unknown) == (4403, "not_allowed")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.example", "file://"]
)
async def test_a_page_of_another_origin_is_refused(server: Running, origin: str) -> None:
    token = await server.token()
    assert await _refused(server, token, origin=origin) == (4403, "origin_refused")


async def test_a_token_that_expires_ends_the_socket(server: Running) -> None:
    # JWTs count whole seconds: the shortest life that is surely not over at hello
    token, expires_at = signer_of(server.services).issue_visitor("demo", "v-1", 2 / 3600)
    async with open_tab(server) as tab:
        await tab.send("hello", token=token)
        await tab.receive_until("welcome")
        await until(lambda: time.time() > expires_at)
        await _ask(tab)
        assert await tab.closed() == (4401, "")
