"""Conversations, reviews and exclusions over HTTP."""

from typing import Any

import httpx
import pytest
from sqlalchemy import select

from chatbot.conversation.events import ConversationId, VisitorId
from chatbot.errors import StoreUnavailable
from chatbot.record.database import Database
from chatbot.record.tables import Audit, Review
from chatbot.services import Services
from tests.chatbot.recorded import agent as agent_says
from tests.chatbot.recorded import record_conversation, reply, visitor

C1 = ConversationId("c-1")


async def _begin(services: Services, text: str = "Where is my order?") -> int:
    """A conversation that is only in the log so far, with one reply; gives the reply's offset."""
    log = services.log
    await log.create(C1, site="demo", visitor=VisitorId("v-1"))
    await log.append_message(C1, role="visitor", text=text, client_message_id="m-1", author="v-1")
    lease = await log.take_job("w", 5)
    assert lease is not None
    await log.start_reply(lease, "v1")
    await log.append_delta(lease, 0, "On the moon.")
    outcome = await log.complete_reply(
        lease,
        text="On the moon.",
        finish_reason="end",
        version="v1",
        usage={},
        confidence=0.5,
        seconds=0.1,
    )
    assert outcome == "written"
    return (await log.read(C1))[-1].offset


def _reviews(database: Database) -> list[Review]:
    with database.session() as session:
        return list(session.scalars(select(Review)))


async def test_a_conversation_is_read_from_the_log_at_once(
    services: Services, agent: httpx.AsyncClient
) -> None:
    offset = await _begin(services)
    await services.log.append_note(C1, text="VIP", author="ada", client_message_id="n-1")
    await services.log.give_rating(C1, score=2, comment="hm")
    answer = await agent.get("/conversations/c-1")
    assert answer.status_code == 200
    data = answer.json()
    head = data["conversation"]
    assert (head["id"], head["site"], head["status"], head["score"]) == ("c-1", "demo", "bot", 2)
    assert not head["excluded"]
    kinds = [event["type"] for event in data["events"]]
    assert kinds == ["message.created", "reply.completed", "note.created", "rating.given"]
    bot = data["events"][1]
    assert (bot["offset"], bot["text"], bot["version"]) == (offset, "On the moon.", "v1")
    assert data["reviews"] == []


async def test_a_conversation_is_read_from_the_record_when_the_store_lost_it(
    database: Database, agent: httpx.AsyncClient
) -> None:
    closed = ("status.changed", {"status": "closed", "previous": "bot", "agent": ""})
    record_conversation(database, "c-old", visitor("Hi"), reply("Hello"), closed, status="closed")
    data = (await agent.get("/conversations/c-old")).json()
    assert [event["type"] for event in data["events"]][:2] == ["message.created", "reply.completed"]
    assert data["conversation"]["status"] == "closed"


async def test_the_record_answers_while_the_store_is_away(
    services: Services,
    database: Database,
    agent: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record_conversation(
        database,
        "c-old",
        visitor("Hi"),
        ("status.changed", {"status": "human", "agent": "ada"}),
        agent_says("Ada here"),
        ("rating.given", {"score": 5, "comment": ""}),
        status="human",
    )

    async def away(*_: Any) -> None:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(type(services.log), "catch_up", away)
    head = (await agent.get("/conversations/c-old")).json()["conversation"]
    assert (head["status"], head["agent"], head["score"]) == ("human", "ada", 5)
    assert (await agent.get("/conversations/c-none")).status_code == 404


async def test_unknown_conversations_and_playgrounds_are_not_found(
    services: Services, agent: httpx.AsyncClient, reviewer: httpx.AsyncClient
) -> None:
    await services.log.create(
        ConversationId("play-1"), site="", visitor=VisitorId("p"), kind="playground"
    )
    for name in ("c-none", "play-1"):
        assert (await agent.get(f"/conversations/{name}")).status_code == 404
        for path, body in (("reviews/1", {}), ("exclusion", {"excluded": True})):
            answer = await reviewer.put(f"/conversations/{name}/{path}", json=body)
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "not_found"


async def test_the_list_filters_searches_and_pages(
    database: Database, agent: httpx.AsyncClient
) -> None:
    for n in range(5):
        record_conversation(
            database,
            f"c-{n}",
            visitor(f"Question {n}"),
            reply("Answer", version=f"v{n % 2}"),
            site="shop" if n == 4 else "demo",
            status="closed" if n == 0 else "bot",
            at=1000 * (n + 1),
        )

    async def ids(**params: Any) -> list[str]:
        answer = await agent.get("/conversations", params=params)
        assert answer.status_code == 200, answer.text
        return [item["id"] for item in answer.json()["items"]]

    assert await ids() == ["c-4", "c-3", "c-2", "c-1", "c-0"]
    assert await ids(status="closed") == ["c-0"]
    assert await ids(site="shop") == ["c-4"]
    assert await ids(q="question 3") == ["c-3"]
    assert await ids(version="v1") == ["c-3", "c-1"]
    assert await ids(reviewed="true") == []

    first = (await agent.get("/conversations", params={"limit": 2})).json()
    assert [item["id"] for item in first["items"]] == ["c-4", "c-3"]
    item = first["items"][0]
    assert (item["versions"], item["messages"], item["preview"]) == (["v0"], 2, "Question 4")
    seen, cursor = [], first["next_cursor"]
    while cursor:
        page = (await agent.get("/conversations", params={"limit": 2, "cursor": cursor})).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert seen == ["c-2", "c-1", "c-0"]


@pytest.mark.parametrize(
    "params",
    [{"limit": 0}, {"limit": 1000}, {"cursor": "nonsense"}, {"status": "odd"}, {"rating": 6}],
)
async def test_bad_questions_are_refused(agent: httpx.AsyncClient, params: dict[str, Any]) -> None:
    answer = await agent.get("/conversations", params=params)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "bad_request"


async def test_a_reply_is_reviewed_before_it_is_even_recorded(
    services: Services, reviewer: httpx.AsyncClient, database: Database
) -> None:
    offset = await _begin(services)
    body = {"verdict": "bad", "correction": "It arrives on Monday.", "comment": "wrong"}
    answer = await reviewer.put(f"/conversations/c-1/reviews/{offset}", json=body)
    assert answer.status_code == 200
    data = answer.json()
    assert {name: data[name] for name in body} == body
    assert (data["offset"], data["reviewer"]) == (offset, "reviewer")
    seen = (await reviewer.get("/conversations/c-1")).json()["reviews"]
    assert seen == [data]
    with database.session() as session:
        audit = session.scalars(select(Audit).where(Audit.action == "review")).one()
    assert (audit.actor, audit.subject) == ("reviewer", "c-1")


async def test_a_second_review_replaces_the_first_and_an_empty_one_takes_it_back(
    services: Services, reviewer: httpx.AsyncClient, database: Database
) -> None:
    path = f"/conversations/c-1/reviews/{await _begin(services)}"
    await reviewer.put(path, json={"verdict": "bad", "correction": "X"})
    await reviewer.put(path, json={"verdict": "good"})
    (row,) = _reviews(database)
    assert (row.verdict, row.correction) == ("good", None)
    page = (await reviewer.get("/conversations", params={"reviewed": "true"})).json()
    assert page["items"][0]["reviewed"]
    for _ in range(2):
        assert (await reviewer.put(path, json={})).status_code == 200
    assert _reviews(database) == []


async def test_a_blank_correction_is_none(services: Services, reviewer: httpx.AsyncClient) -> None:
    path = f"/conversations/c-1/reviews/{await _begin(services)}"
    answer = await reviewer.put(path, json={"verdict": "bad", "correction": "  \n"})
    assert answer.json()["correction"] is None


async def test_only_replies_of_the_bot_are_reviewed(
    services: Services, reviewer: httpx.AsyncClient, database: Database
) -> None:
    await _begin(services)
    answer = await reviewer.put("/conversations/c-1/reviews/1", json={"verdict": "good"})
    assert answer.status_code == 422
    assert "message.created" in answer.json()["error"]["message"]
    answer = await reviewer.put("/conversations/c-1/reviews/99", json={"verdict": "good"})
    assert answer.status_code == 404
    for body in ({"verdict": "great"}, {"verdict": "good", "correctoin": "x"}, {"correction": 7}):
        answer = await reviewer.put("/conversations/c-1/reviews/2", json=body)
        assert answer.status_code == 422
    answer = await reviewer.put("/conversations/c-1/reviews/x", json={})
    assert answer.status_code == 422
    assert _reviews(database) == []


async def test_a_conversation_is_kept_out_of_training_and_let_in_again(
    services: Services, reviewer: httpx.AsyncClient
) -> None:
    await _begin(services)
    for excluded in (True, False):
        body = {"excluded": excluded, "reason": "asked for it"}
        answer = await reviewer.put("/conversations/c-1/exclusion", json=body)
        assert answer.json()["excluded"] is excluded
        head = (await reviewer.get("/conversations/c-1")).json()["conversation"]
        assert (head["excluded"], head["exclusion_reason"]) == (excluded, "asked for it")


async def test_the_overview_counts(
    services: Services, database: Database, reviewer: httpx.AsyncClient, admin: httpx.AsyncClient
) -> None:
    record_conversation(database, "c-a", visitor("Hi"), reply("Hello"), status="closed")
    record_conversation(database, "c-b", visitor("Hi"), reply("Hello"), status="waiting")
    offset = await _begin(services)
    await reviewer.put(f"/conversations/c-1/reviews/{offset}", json={"correction": "Monday"})
    await reviewer.put("/conversations/c-a/reviews/2", json={"verdict": "good"})
    data = (await reviewer.get("/overview")).json()
    assert data == {
        "conversations": 3,
        "open": 2,
        "waiting": 1,
        "reviewed": 2,
        "corrections": 1,
        "live_version": "base-smollm2-135m",
        "active_run": None,
    }
    await admin.post("/training/runs", json={"request_id": "r-1"})
    active = (await reviewer.get("/overview")).json()["active_run"]
    assert active["state"] == "queued"
