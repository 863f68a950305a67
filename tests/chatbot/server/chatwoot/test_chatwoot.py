"""Frontdesk as Chatwoot's agent bot, against a real HTTP server that speaks Chatwoot's API."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from chatbot.assist.board import AssistBoard
from chatbot.budgets import TokenBudgets
from chatbot.cli import setting_rows
from chatbot.conversation.events import Head
from chatbot.errors import SettingsError
from chatbot.record.database import Database
from chatbot.server.api_keys import create_key
from chatbot.server.app import create_app
from chatbot.server.limits import SocketLimits
from chatbot.services import Services
from tests.chatbot.server.calls.conftest import client_of
from tests.chatbot.server.chatwoot.chatwoot import (
    ACCOUNT,
    CONVERSATION,
    SECRET,
    TOKEN,
    Chatwoot,
    chatwoot,
    deliver,
    signed,
)
from tests.chatbot.server.conftest import staff_token
from tests.chatbot.server.room import (
    Running,
    ScriptedWorker,
    desk_tab,
    make_services,
    running,
    until,
)

REPLY = "Your parcel arrives tomorrow."


@pytest.fixture
def place() -> Iterator[Chatwoot]:
    with chatwoot() as started:
        yield started


def configured(place: Chatwoot, **more: Any) -> str:
    demo = {"url": f"{place.url}/chat", "account": ACCOUNT, "token": TOKEN, "secret": SECRET}
    return json.dumps({"demo": demo | more})


@pytest.fixture
def services(
    redis: Redis,
    database: Database,
    tmp_path: Path,
    place: Chatwoot,
) -> Services:
    return make_services(redis, database, tmp_path, chatwoot=configured(place))


@asynccontextmanager
async def serving(services: Services, echo: float = 60.0) -> AsyncIterator[Running]:
    """A server that does not wait long before it tries again."""
    limits = SocketLimits(chatwoot_retry=(0.1, 0.2), chatwoot_echo=echo)
    async with running(services, limits=limits) as server:
        yield server


@asynccontextmanager
async def bot(services: Services, echo: float = 60.0) -> AsyncIterator[Running]:
    """The same with a worker."""
    worker = ScriptedWorker(services, [REPLY])
    async with serving(services, echo) as server, worker.at_work():
        yield server


async def head_of(services: Services) -> Head:
    [head] = await services.log.open_conversations()
    return head


async def kinds(services: Services, kind: str) -> list[dict[str, Any]]:
    name = (await head_of(services)).conversation_id
    return [event.data for event in await services.log.read(name) if event.type == kind]


async def forwarded(services: Services, count: int) -> list[str]:
    """The outcomes, as soon as there are ``count``."""
    async with asyncio.timeout(15):
        while True:
            found = [data["outcome"] for data in await kinds(services, "reply.forwarded")]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.02)


async def take(server: Running, payload: dict[str, Any], delivery: str) -> str:
    answer = await deliver(server.url, payload, delivery)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["outcome"])


async def metrics_of(server: Running) -> str:
    async with httpx.AsyncClient() as http:
        return (await http.get(f"{server.url}/metrics")).text


async def test_a_pending_conversation_is_answered_once(services: Services, place: Chatwoot) -> None:
    async with bot(services) as server:
        first = place.says("Where is my parcel?")
        assert await take(server, first, "d-1") == "taken"
        assert await take(server, first, "d-1") == "duplicate"
        assert await take(server, first, "d-2") == "taken"  # the same message all the same
        assert await forwarded(services, 1) == ["sent"]
        echo = place.webhook(place.messages[-1])  # what Chatwoot tells of our own words
        assert await take(server, echo, "d-3") == "ignored"
        assert await take(server, place.says("And the other one?"), "d-4") == "taken"
        assert await forwarded(services, 2) == ["sent", "sent"]
    assert place.replies == [REPLY, REPLY]
    assert [data["text"] for data in await kinds(services, "message.created")] == [
        "Where is my parcel?",
        "And the other one?",
    ]
    [opened] = await kinds(services, "channel.opened")
    assert opened["external"] == {"account": ACCOUNT, "conversation": CONVERSATION}


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ({"secret": "another"}, 401),
        ({"at": 1_700_000_000}, 401),
        ({"at": 4_000_000_000}, 401),
        ({}, 200),
    ],
)
async def test_only_what_chatwoot_signed_now_is_taken(
    services: Services, place: Chatwoot, how: dict[str, Any], status: int
) -> None:
    async with serving(services) as server:
        answer = await deliver(server.url, place.says("Hello"), "d-1", **how)
        assert answer.status_code == status, answer.text
        found = await services.log.open_conversations()
        assert len(found) == (1 if status == 200 else 0)


async def test_what_cannot_be_kept_is_left_out(services: Services, place: Chatwoot) -> None:
    async with serving(services) as server:
        await take(server, place.says("Wh\x00ere \ud800is it?"), "d-1")
        await take(server, {**place.agent_says("An\x00na", "H\x00i")}, "d-2")
    assert [data["text"] for data in await kinds(services, "message.created")] == [
        "Where ?is it?",
        "Hi",
    ]


async def test_a_body_that_was_changed_is_refused(services: Services, place: Chatwoot) -> None:
    async with serving(services) as server, httpx.AsyncClient(base_url=server.url) as http:
        body = json.dumps(place.says("Hello")).encode()
        headers = signed(body, "d-1")
        for path, content, given, status in (
            ("/v1/chatwoot/demo", body.replace(b"Hello", b"Hullo"), headers, 401),
            ("/v1/chatwoot/demo", body, {}, 401),
            ("/v1/chatwoot/none", body, headers, 404),
        ):
            answer = await http.post(path, content=content, headers=given)
            assert answer.status_code == status, path
        for payload in ({"event": "message_created"}, ["a"]):
            strange = await deliver(server.url, payload, "d-2")  # type: ignore[arg-type]
            assert strange.status_code == 422
        other = {**place.says("Hello"), "account": {"id": ACCOUNT + 1}}
        assert (await deliver(server.url, other, "d-3")).status_code == 403
    assert await services.log.open_conversations() == []


async def test_the_bot_is_silent_while_people_have_it_and_answers_when_it_is_pending_again(
    services: Services, place: Chatwoot
) -> None:
    async with bot(services) as server:
        await take(server, place.says("Where is my parcel?"), "d-1")
        await forwarded(services, 1)
        place.status = "open"
        opened = {"event": "conversation_opened", **place.conversation()}
        assert await take(server, opened, "d-2") == "taken"
        assert (await head_of(services)).status == "human"
        await take(server, place.says("Are you a person?"), "d-3")
        await take(server, place.agent_says("Anna", "I am."), "d-4")
        note = {**place.agent_says("Anna", "looks angry"), "private": True}
        await take(server, note, "d-5")
        head = await head_of(services)
        assert (head.status, head.agent) == ("human", "Anna (Chatwoot)")
        assert await services.log.queue_length() == 0
        place.status = "pending"
        await take(server, place.says("Thanks. And the other parcel?"), "d-6")
        assert (await forwarded(services, 2))[-1] == "sent"
    assert [text for text in place.replies if text == REPLY] == [REPLY, REPLY]
    moves = [data["status"] for data in await kinds(services, "status.changed")]
    assert moves == ["human", "human", "bot"]  # the boundary is in the log
    assert [data["text"] for data in await kinds(services, "note.created")] == ["looks angry"]


async def test_a_reply_that_people_overtook_is_not_sent(
    services: Services, place: Chatwoot
) -> None:
    place.faults = [503] * 3
    async with bot(services) as server:
        await take(server, place.says("Where is my parcel?"), "d-1")
        await until(lambda: ("POST", "messages") in place.calls)
        place.status = "open"
        await take(server, place.agent_says("Anna", "Let me see."), "d-2")
        assert await forwarded(services, 1) == ["withheld"]
    assert place.replies == ["Let me see."]


async def test_a_bot_that_cannot_answer_hands_over(services: Services, place: Chatwoot) -> None:
    async with serving(services) as server:
        await take(server, place.says("Where is my parcel?"), "d-1")
        lease = await services.log.take_job("w", 5)
        assert lease is not None
        await services.log.fail_reply(lease, version="v1", reason="too_slow")
        assert await forwarded(services, 1) == ["sent"]
        assert place.status == "open"
        assert await take(server, place.says(None), "d-2") == "taken"  # a picture
    assert place.replies == []


@pytest.mark.parametrize("limit", ["messages_per_minute", "tokens_per_visitor"])
async def test_where_the_bot_may_not_answer_people_are_asked(
    services: Services, place: Chatwoot, limit: str
) -> None:
    settings = services.settings.model_copy(update={limit: 1})
    async with bot(dataclasses.replace(services, settings=settings)) as server:
        await take(server, place.says("Where is my parcel?"), "d-1")
        await forwarded(services, 1)
        head = await head_of(services)
        budgets = TokenBudgets(services.redis, settings)
        await budgets.spend(head.site, head.visitor, 1)
        await take(server, place.says("And the other one?"), "d-2")
        assert await forwarded(services, 2) == ["sent", "sent"]
        assert (await head_of(services)).status == "waiting"
        assert place.status == "open"
        metrics = await metrics_of(server)
    assert place.replies == [REPLY]
    assert len(await kinds(services, "message.created")) == 2  # it is kept all the same
    assert f'frontdesk_limited_total{{limit="{limit}"}} 1.0' in metrics


async def test_what_was_pending_before_the_hand_over_does_not_undo_it(
    services: Services, place: Chatwoot
) -> None:
    place.faults = [503] * 1000  # the hand-over does not get through
    async with serving(services) as server:
        await take(server, place.says("Where is my parcel?"), "d-1")
        lease = await services.log.take_job("w", 5)
        assert lease is not None
        await services.log.fail_reply(lease, version="v1", reason="too_slow")
        await take(server, place.says("Hello?"), "d-2")  # still says pending
        assert (await head_of(services)).status == "waiting"
        place.faults = []
        assert await forwarded(services, 1) == ["sent"]
    assert place.status == "open"


async def test_a_resolved_conversation_is_closed_and_a_new_question_opens_it(
    services: Services, place: Chatwoot
) -> None:
    async with bot(services) as server:
        await take(server, place.says("Where is my parcel?"), "d-1")
        await forwarded(services, 1)
        name = (await head_of(services)).conversation_id
        place.status = "resolved"
        await take(server, {"event": "conversation_resolved", **place.conversation()}, "d-2")
        head = await services.log.head(name)
        assert head is not None
        assert head.status == "closed"
        place.status = "pending"
        await take(server, place.says("One more thing"), "d-3")
        await forwarded(services, 2)
    assert len(place.replies) == 2


@pytest.mark.parametrize("fault", ["lost", "cut", 500, 502, 401, 429])
async def test_a_reply_arrives_once_whatever_happens_on_the_way(
    services: Services, place: Chatwoot, fault: int | str
) -> None:
    place.faults = [fault]
    async with bot(services) as server:
        await take(server, place.says("Where is my parcel?"), "d-1")
        assert await forwarded(services, 1) == ["sent"]
    assert place.replies == [REPLY]


async def test_a_bots_token_that_may_not_read_messages_is_enough(
    services: Services, place: Chatwoot
) -> None:
    place.readable = ("",)
    place.faults = ["lost"]
    async with bot(services) as server:
        await take(server, place.says("Where is my parcel?"), "d-1")
        assert await forwarded(services, 1) == ["sent"]
    assert place.replies == [REPLY]


async def test_the_echo_proves_what_nobody_may_read(services: Services, place: Chatwoot) -> None:
    place.readable = ()
    place.faults = ["lost"]
    async with bot(services) as server:
        await take(server, place.says("Where is my parcel?"), "d-1")
        await until(lambda: place.replies == [REPLY])
        await take(server, place.webhook(place.messages[-1]), "d-2")
        assert await forwarded(services, 1) == ["sent"]
    assert place.replies == [REPLY]


async def test_where_nothing_proves_it_people_are_asked(
    services: Services, place: Chatwoot
) -> None:
    place.readable = ()
    place.faults = ["cut"]
    async with bot(services, 0.3) as server:
        await take(server, place.says("Where is my parcel?"), "d-1")
        assert await forwarded(services, 1) == ["unknown"]
    assert place.replies == []  # perhaps never said, but surely not twice
    assert place.status == "open"


async def test_a_reply_that_waited_for_a_server_is_sent_by_the_next_one(
    services: Services, place: Chatwoot, redis: Redis
) -> None:
    place.faults = ["last"]
    async with bot(services) as server:
        await take(server, place.says("Where is my parcel?"), "d-1")
        await until(lambda: place.replies == [REPLY])
    assert await kinds(services, "reply.forwarded") == []
    place.down = False
    async with serving(services):  # after a restart: nothing is left in memory
        assert await forwarded(services, 1) == ["sent"]
    assert place.replies == [REPLY]
    # the store forgets all: what went is in the record
    name = (await head_of(services)).conversation_id
    head = await services.log.head(name)
    assert head is not None
    services.archive.store(head, await services.log.read(name))
    await redis.flushdb()
    async with bot(services) as server:
        await take(server, place.says("And the other one?"), "d-2")
        await forwarded(services, 2)
    assert place.replies == [REPLY, REPLY]


async def test_two_servers_send_a_reply_once(services: Services, place: Chatwoot) -> None:
    async with bot(services) as server, serving(services):
        for number in range(5):
            await take(server, place.says(f"Question {number}?"), f"d-{number}")
            await forwarded(services, number + 1)
    assert len(place.replies) == 5


async def test_no_redirect_leads_elsewhere(services: Services, place: Chatwoot) -> None:
    with chatwoot() as other:
        place.elsewhere = f"{other.url}/chat/api/v1/accounts/3/conversations/7/messages"
        async with bot(services) as server:
            await take(server, place.says("Where is my parcel?"), "d-1")
            assert await forwarded(services, 1) == ["refused"]
        assert other.calls == []


async def test_the_desk_leaves_chatwoots_conversations_to_chatwoot(
    services: Services, place: Chatwoot
) -> None:
    async with serving(services) as server:
        await take(server, place.says("Where is my parcel?"), "d-1")
        name = (await head_of(services)).conversation_id
        token = staff_token(services, "anna")
        async with desk_tab(server, token) as desk:
            for act, fields in (
                ("conversation.claim", {}),
                ("conversation.close", {}),
                ("message.send", {"client_message_id": "a", "text": "x"}),
            ):
                await desk.send(act, conversation_id=name, **fields)
                assert "in Chatwoot" in (await desk.receive_until("error"))["message"]


async def test_staff_find_the_bots_conversation_for_their_panel(
    services: Services, place: Chatwoot
) -> None:
    where = {"site": "demo", "account": ACCOUNT, "conversation": CONVERSATION}
    token = staff_token(services, "anna")
    async with bot(services) as server, client_of(server, token) as anna:
        assert (await anna.post("/sessions/chatwoot", json=where)).status_code == 404
        await take(server, place.says("Where is my parcel?"), "d-1")
        await forwarded(services, 1)
        view = (await anna.post("/sessions/chatwoot", json=where)).json()
        assert view["status"] == "bot"
        assert [(line["speaker"], line["text"]) for line in view["transcript"]] == [
            ("customer", "Where is my parcel?"),
            ("bot", REPLY),
        ]
        place.status = "open"
        await take(server, place.says("A person, please"), "d-2")
        view = (await anna.get(f"/sessions/{view['session_id']}")).json()
        assert (view["status"], view["summary"]["open"]) == ("open", ["A person, please"])
        assert await AssistBoard(services.redis).take(5) is not None  # drafts were asked for
        said = {"id": "u", "speaker": "agent", "text": "x", "at": 10**12, "final": True}
        path = f"/sessions/{view['session_id']}"
        assert (await anna.post(f"{path}/fragments", json=said)).status_code == 403
        assert (await anna.post(f"{path}/close", json={"reason": "x"})).status_code == 403
        key = create_key(services.database, "test", "telephony", "demo")[1]
        async with client_of(server, key) as telephony:
            assert (await telephony.get(path)).status_code == 404
            assert (await telephony.post("/sessions/chatwoot", json=where)).status_code == 404


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"url": "ftp://x"}, "url"),
        ({"url": "https://user:pass@x"}, "url"),
        ({"account": 0}, "account"),
        ({"token": ""}, "token"),
        ({"secrets": "x"}, "secrets"),
    ],
)
def test_a_wrong_setting_stops_the_start_and_is_named(
    redis: Redis,
    database: Database,
    tmp_path: Path,
    place: Chatwoot,
    change: dict[str, Any],
    named: str,
) -> None:
    wrong = make_services(redis, database, tmp_path, chatwoot=configured(place, **change))
    with pytest.raises(SettingsError, match=named) as problem:
        create_app(wrong)
    assert SECRET not in str(problem.value)
    assert "pass" not in str(problem.value)


def test_the_setting_is_masked(services: Services) -> None:
    rows = {row["name"]: row["value"] for row in setting_rows(services.settings, set())}
    assert rows["chatwoot"] == "********"
