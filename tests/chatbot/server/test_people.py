"""Whether people answer, how long they take, and the form for the hours in which they do not."""

import time

from redis.asyncio import Redis

from chatbot.conversation.archive import Archive
from chatbot.conversation.events import ConversationId, VisitorId
from chatbot.record.database import Database
from chatbot.record.tables import Conversation, EventRow, Site
from chatbot.server.auth import signer_of
from chatbot.server.people import PeopleDesk, Wait, recent_waits, wait_per_place
from tests.chatbot.server.room import Running, chat_tab

CLOSED = {"hours": {"mon": ["00:00-00:01"]}, "holidays": []}


def test_a_place_in_the_line_costs_what_it_did() -> None:
    alone = [Wait(at * 1_000_000, at * 1_000_000 + 60_000) for at in range(5)]
    assert wait_per_place(alone) == 60
    # three came at once and one agent took them one after the other
    line = [Wait(0, 60_000), Wait(1, 120_000), Wait(2, 180_000)]
    assert wait_per_place(line) is not None
    assert abs(wait_per_place(line) - 60) < 0.1  # type: ignore[operator]
    assert wait_per_place(line[:2]) is None  # too few to say anything


def _moves(database: Database, name: str, site: str, *moves: tuple[str, int]) -> None:
    """A conversation in the record: ``moves`` are (status, seconds ago)."""
    now = int(time.time() * 1000)
    with database.session() as session:
        session.add(
            Conversation(
                id=name,
                epoch="1-a",
                site=site,
                visitor="v",
                status="closed",
                started_at=now,
                updated_at=now,
            )
        )
        session.flush()
        for offset, (status, ago) in enumerate(moves, 1):
            session.add(
                EventRow(
                    conversation_id=name,
                    epoch="1-a",
                    offset=offset,
                    type="status.changed",
                    at=now - ago * 1000,
                    data={"status": status},
                )
            )


def test_waits_are_read_from_the_record(database: Database) -> None:
    _moves(database, "a", "demo", ("waiting", 900), ("human", 840), ("closed", 800))
    _moves(database, "b", "demo", ("waiting", 500), ("closed", 400))  # nobody came
    _moves(database, "c", "demo", ("waiting", 300), ("bot", 200), ("human", 100))  # taken later
    _moves(database, "d", "other", ("waiting", 900), ("human", 899))
    _moves(database, "e", "demo", ("waiting", 20 * 86400), ("human", 19 * 86400))  # long ago
    waits = recent_waits(database, "demo")
    assert [round((wait.ended - wait.began) / 1000) for wait in waits] == [60]


async def _wait(server: Running, name: str) -> ConversationId:
    log = server.services.log
    head = await log.create(ConversationId(name), site="demo", visitor=VisitorId("v"))
    await log.change_status(head.conversation_id, "waiting", reason="asked", actor="visitor")
    return head.conversation_id


async def test_place_and_wait_come_from_the_line_and_the_record(server: Running) -> None:
    for ago in (900, 1900, 2900):  # one after the other, each at the head of the line
        moves = ("waiting", ago), ("human", ago - 120)
        _moves(server.services.database, f"c-{ago}", "demo", *moves)
    first, second = await _wait(server, "first"), await _wait(server, "second")
    # who writes while waiting keeps the place
    await server.services.log.append_message(
        first, role="visitor", text="still here", client_message_id="m", author="v"
    )
    desk = PeopleDesk(server.services.log, server.services.database)
    people = [await desk.ask("demo", name) for name in (first, second, ConversationId("new"))]
    assert [found.place for found in people] == [1, 2, 3]
    assert [found.expected_wait for found in people] == [120, 240, 360]
    assert all(found.open and found.opens_at is None for found in people)


def _set_hours(server: Running) -> None:
    with server.services.database.session() as session:
        site = session.get(Site, "demo")
        assert site is not None
        site.widget = CLOSED


async def test_closed_hours_are_told_with_the_time_of_opening(server: Running) -> None:
    _set_hours(server)
    visitor = await server.visitor()
    assert (visitor["site"]["open"], visitor["site"]["offline_form"]) == (False, True)
    async with chat_tab(server, token=visitor["token"]) as tab:
        await tab.send("people.ask")
        state = await tab.receive_until("people.state")
    assert (state["open"], state["expected_wait"]) == (False, None)
    assert state["opens_at"] > time.time() * 1000


async def test_the_offline_form_is_a_conversation_that_waits_for_people(server: Running) -> None:
    async with chat_tab(server) as tab:
        frame = {"client_message_id": "m1", "name": " Ada ", "email": "ada@shop.example",
                 "text": "Please call me"}  # fmt: skip
        for _ in range(2):  # sent again after a cut
            await tab.send("contact.leave", **frame)
            await tab.receive_until("message.accepted", client_message_id="m1")
        await tab.drain()
        seen = {frame["type"] for frame in tab.seen}
    assert "visitor.described" not in seen  # staff's business
    head = await server.services.log.head(ConversationId(tab.welcome["conversation_id"]))
    assert head is not None
    assert head.status == "waiting"
    events = await server.services.log.read(head.conversation_id)
    assert [event.type for event in events] == [
        "status.changed", "visitor.described", "message.created"
    ]  # fmt: skip
    assert events[1].data["facts"] == {"name": "Ada", "email": "ada@shop.example"}
    assert events[1].data["source"] == "form"
    lease = await server.services.log.take_job("w", 0.05)
    assert lease is None  # the bot is not asked


async def test_a_form_without_an_address_is_refused(server: Running) -> None:
    async with chat_tab(server) as tab:
        await tab.send("contact.leave", client_message_id="m", email="nobody", text="x")
        error = await tab.receive_until("error")
    assert error["code"] == "protocol"


async def test_what_the_page_says_is_for_staff_and_is_no_proof(server: Running) -> None:
    async with chat_tab(server) as tab:
        for _ in range(2):
            await tab.send("visitor.describe", client_message_id="d", facts={"plan": "gold"})
            await tab.receive_until("message.accepted", client_message_id="d")
    events = await server.services.log.read(ConversationId(tab.welcome["conversation_id"]))
    assert [event.data["source"] for event in events] == ["page"]


async def test_what_the_sites_own_server_says_is_kept_once(server: Running) -> None:
    services = server.services
    token, _ = signer_of(services).issue_visitor(
        "demo", "u-1", 1, known=True, facts={"email": "ada@shop.example"}
    )
    for number in range(2):  # another tab, another day
        async with chat_tab(server, token=token) as tab:
            await tab.send("message.send", client_message_id=f"m{number}", text="Hello")
            await tab.receive_until("message.accepted")
            await tab.drain()
    events = await services.log.read(ConversationId(tab.welcome["conversation_id"]))
    described = [event for event in events if event.type == "visitor.described"]
    assert [event.data["facts"] for event in described] == [{"email": "ada@shop.example"}]
    assert described[0].data["source"] == "identity"


async def test_facts_survive_a_store_that_forgets(server: Running, redis: Redis) -> None:
    services = server.services
    async with chat_tab(server) as tab:
        await tab.send("visitor.describe", client_message_id="d", facts={"plan": "gold"})
        await tab.receive_until("message.accepted")
    name = ConversationId(tab.welcome["conversation_id"])
    head = await services.log.head(name)
    assert head is not None
    Archive(services.database).store(head, await services.log.read(name))
    await redis.flushdb()
    again = await services.log.describe_visitor(
        name, facts={"plan": "gold"}, source="page", client_message_id="d"
    )
    assert again.duplicate


async def test_a_visitor_ends_the_chat(server: Running) -> None:
    async with chat_tab(server) as tab:
        await tab.send("conversation.end")  # nothing was said: nothing to end
        assert await tab.drain() == []
        await tab.send("message.send", client_message_id="m", text="Hello")
        await tab.send("conversation.end")
        await tab.receive_until("status.changed", status="closed")
        await tab.send("conversation.end")
        assert await tab.drain() == []
        await tab.send("rating.give", score=5)
        await tab.receive_until("rating.given")
