"""Calls over HTTP: whose they are, what is heard, what comes back, what became of drafts."""

import json

import httpx
import pytest

from chatbot.assist.board import AssistBoard, AssistJob, DraftSet
from chatbot.assist.drafts import Draft
from chatbot.assist.hints import Hint
from chatbot.conversation.archive import Archive
from chatbot.conversation.events import ConversationId
from chatbot.server.api_keys import create_key
from chatbot.server.auth import signer_of
from finetune.preferences import preference_pairs
from tests.chatbot.server.calls.conftest import NOW, Telephony, client_of, said
from tests.chatbot.server.room import Running, chat_tab, desk_tab

PAST = Draft("p0", "Which order is it?", "past", 0.7, "c-0")
OWN = Draft("m0", "We will look into it.", "model", 0.4, "v1")
BLAND = Draft("p1", "Goodbye.", "past", 0.1, "c-9")
HINT = Hint("look_up", "orders", 0.5, "c-0")


async def drafted(server: Running, call: str, upto: int, name: str = "s1") -> DraftSet:
    """Put drafts for the question at ``upto`` on the board, as a worker does."""
    made = DraftSet(name, upto, "v1", (PAST, OWN, BLAND), True, (HINT,))
    await AssistBoard(server.services.redis).put(ConversationId(call), made)
    return made


async def test_a_call_is_begun_once_and_held_by_its_agent(
    server: Running, telephony: Telephony
) -> None:
    first = await telephony.http.post(
        "/sessions",
        json={
            "site": "demo",
            "call_id": "pbx 1",
            "agent": "anna",
            "language": "de-AT",
            "attributes": {"queue": "returns"},
        },
    )
    assert first.status_code == 201
    call = first.json()
    assert call["status"] == "open"
    assert (call["call_id"], call["agent"], call["language"]) == ("pbx 1", "anna", "de-AT")
    assert call["attributes"] == {"queue": "returns"}
    again = await telephony.http.post(
        "/sessions", json={"site": "demo", "call_id": "pbx 1", "agent": "ben"}
    )
    assert again.status_code == 200
    assert again.json() == call  # as it is: the second changes nothing
    head = await server.services.log.head(ConversationId(call["session_id"]))
    assert head is not None
    assert (head.status, head.agent, head.site) == ("human", "anna", "demo")
    other = await telephony.begin("pbx 2")
    assert other["session_id"] != call["session_id"]


async def test_what_is_said_is_heard_once_and_in_its_order(telephony: Telephony) -> None:
    call = await telephony.call()
    heard = await telephony.hear(
        call,
        said("u2", "agent", "Which order is it?", 4000),
        said("u1", "customer", "My parcel did not come", 1000),
        said("u3", "customer", "order", 5000, final=False),
    )
    assert heard == [("u2", "kept"), ("u1", "kept"), ("u3", "kept")]
    assert await telephony.hear(
        call,
        said("u1", "customer", "other words", 1000),
        said("u3", "customer", "or", 4900, final=False),
        said("u2", "agent", "Whi", 4000, final=False),
    ) == [("u1", "duplicate"), ("u3", "stale"), ("u2", "final")]
    view = await telephony.read(call)
    assert [(line["id"], line["text"], line["final"]) for line in view["transcript"]] == [
        ("u1", "My parcel did not come", True),
        ("u2", "Which order is it?", True),
        ("u3", "order", False),
    ]
    assert view["summary"]["problem"] == "My parcel did not come"
    assert view["summary"]["open"] == []
    one = await telephony.http.post(
        f"/sessions/{call}/fragments", json=said("u3", "customer", "order seven", 5000)
    )
    assert one.json()["results"][0]["outcome"] == "kept"
    assert (await telephony.read(call))["summary"]["open"] == ["order seven"]


async def test_drafts_are_asked_for_and_come_with_hints(
    server: Running, telephony: Telephony
) -> None:
    board = AssistBoard(server.services.redis)
    call = await telephony.call()
    await telephony.hear(call, said("u1", "customer", "Where is my parcel?", 0, final=False))
    assert await board.take(0.05) is None  # nobody has said it yet
    await telephony.hear(call, said("u1", "customer", "Where is my parcel?", 0))
    job = await board.take(5)
    assert job is not None
    assert job.conversation_id == call
    head = await server.services.log.head(ConversationId(call))
    assert head is not None
    assert job == AssistJob(ConversationId(call), head.question or 0)
    await drafted(server, call, job.upto)
    shown = (await telephony.read(call))["suggestions"]
    assert [draft["id"] for draft in shown["drafts"]] == ["p0", "m0", "p1"]
    assert shown["hints"] == [HINT.to_wire()]
    assert await board.take(0.05) is None  # asked once
    await telephony.hear(call, said("u2", "agent", "One moment", 2000))
    assert (await telephony.read(call))["suggestions"] is None


async def test_the_fate_of_drafts_is_preference_data(server: Running, telephony: Telephony) -> None:
    call = await telephony.call()
    name = ConversationId(call)
    await telephony.hear(call, said("u1", "customer", "Where is my parcel?", 0))
    head = await server.services.log.head(name)
    assert head is not None
    await drafted(server, call, head.asked)
    edited = "Which order is it, please?"
    for _ in range(2):  # once is enough
        answer = await telephony.http.post(
            f"/sessions/{call}/feedback",
            json={
                "suggestions_id": "s1",
                "displayed": True,
                "rejected": "m0",
                "accepted": {"draft_id": "p0", "text": edited},
            },
        )
        assert answer.status_code == 204, answer.text
    await telephony.hear(call, said("u2", "agent", "which order is it please", 3000))
    late = await telephony.http.post(
        f"/sessions/{call}/feedback",
        json={"suggestions_id": "s1", "accepted": {"draft_id": "p1", "text": "Goodbye."}},
    )
    assert late.status_code == 409
    assert "moved on" in late.json()["error"]["message"]
    gone = await telephony.http.post(
        f"/sessions/{call}/feedback", json={"suggestions_id": "s0", "displayed": True}
    )
    assert gone.status_code == 409

    events = await server.services.log.read(name)
    fates = [(e.type, e.data["actor"]) for e in events if e.type.startswith("suggestion")]
    assert fates == [
        ("suggestions.shown", "anna"),
        ("suggestion.rejected", "anna"),
        ("suggestion.accepted", "anna"),
    ]
    services = server.services
    fresh = await services.log.head(name)
    assert fresh is not None
    Archive(services.database).store(fresh, events)
    pairs = list(preference_pairs(services.database, lambda site: f"You serve {site}."))
    assert [(p["meta"]["kind"], p["rejected"][0]["content"]) for p in pairs] == [
        ("edited", PAST.text),
        ("rejected", OWN.text),
        ("passed_over", BLAND.text),
    ]
    assert {pair["chosen"][0]["content"] for pair in pairs} == {edited}
    assert pairs[0]["prompt"][-1] == {"role": "user", "content": "Where is my parcel?"}


async def test_a_closed_call_takes_nothing_more_and_never_wakes_the_bot(
    server: Running, telephony: Telephony
) -> None:
    call = await telephony.call()
    await telephony.hear(call, said("u1", "customer", "Where", 0, final=False))
    closed = await telephony.http.post(f"/sessions/{call}/close", json={"reason": "solved"})
    assert (closed.json()["status"], closed.json()["reason"]) == ("closed", "solved")
    assert closed.json()["transcript"] == []  # the partial is gone
    again = await telephony.http.post(f"/sessions/{call}/close", json={"reason": "other"})
    assert again.json()["reason"] == "solved"
    late = await telephony.http.post(
        f"/sessions/{call}/fragments", json=said("u2", "customer", "Hello?", 9000)
    )
    assert late.status_code == 409
    assert late.json()["error"]["code"] == "conflict"
    assert await server.services.log.queue_length() == 0
    assert (await telephony.begin())["status"] == "closed"  # the same call stays over


async def test_sites_do_not_mix(server: Running, telephony: Telephony, shop_key: str) -> None:
    call = await telephony.call()
    _, without = create_key(server.services.database, "test", "reports")
    async with client_of(server, shop_key) as shop:
        for method, path, body in (
            ("GET", f"/sessions/{call}", None),
            ("POST", f"/sessions/{call}/fragments", said("u1", "customer", "x", 0)),
            ("POST", f"/sessions/{call}/feedback", {"suggestions_id": "s1", "displayed": True}),
            ("POST", f"/sessions/{call}/close", {"reason": "x"}),
            ("POST", f"/sessions/{call}/token", None),
        ):
            refused = await shop.request(method, path, json=body)
            assert refused.status_code == 404, path
        body = {"site": "demo", "call_id": "pbx 1", "agent": "eve"}
        assert (await shop.post("/sessions", json=body)).status_code == 403
        mine = await shop.post("/sessions", json={**body, "site": "shop"})
        assert mine.json()["session_id"] != call
    for key, status in (("", 401), ("fd-none", 401), (without, 403), ("x.y.z", 401)):
        async with client_of(server, key) as http:
            assert (await http.get(f"/sessions/{call}")).status_code == status, key


async def test_a_revoked_key_is_out(server: Running, telephony: Telephony) -> None:
    from chatbot.server.api_keys import list_keys, revoke_key

    call = await telephony.call()
    [row] = list_keys(server.services.database)
    revoke_key(server.services.database, "test", row.id)
    assert (await telephony.http.get(f"/sessions/{call}")).status_code == 401


async def test_a_panels_token_reads_its_call_and_gives_feedback_only(
    server: Running, telephony: Telephony
) -> None:
    call = await telephony.call()
    other = (await telephony.begin("pbx 2"))["session_id"]
    made = await telephony.http.post(f"/sessions/{call}/token")
    assert made.status_code == 201
    async with client_of(server, made.json()["token"]) as panel:
        assert (await panel.get(f"/sessions/{call}")).status_code == 200
        assert (await panel.get(f"/sessions/{other}")).status_code == 404
        for path, body in (
            (f"/sessions/{call}/fragments", said("u1", "customer", "x", 0)),
            (f"/sessions/{call}/close", {"reason": "x"}),
            (f"/sessions/{call}/token", None),
            ("/sessions", {"site": "demo", "call_id": "pbx 3", "agent": "eve"}),
        ):
            assert (await panel.post(path, json=body)).status_code == 403, path
    expired, _ = signer_of(server.services).issue_panel(call, -1)
    async with client_of(server, expired) as panel:
        assert (await panel.get(f"/sessions/{call}")).status_code == 401


async def test_staff_may_help_themselves(server: Running, anna: str, ben: str) -> None:
    async with client_of(server, anna) as mine, client_of(server, ben) as bens:
        body = {"site": "demo", "call_id": "pbx 1", "agent": "anna"}
        call = (await mine.post("/sessions", json=body)).json()["session_id"]
        fragment = said("u1", "customer", "Where is my parcel?", 0)
        assert (await mine.post(f"/sessions/{call}/fragments", json=fragment)).status_code == 200
        assert (await bens.get(f"/sessions/{call}")).status_code == 200
        for path, wrong in (
            (f"/sessions/{call}/fragments", said("u2", "agent", "x", 0)),
            (f"/sessions/{call}/close", {"reason": "x"}),
            ("/sessions", {**body, "call_id": "pbx 2"}),
        ):
            assert (await bens.post(path, json=wrong)).status_code == 403, path
        taken = await bens.post("/sessions", json={**body, "agent": "ben"})
        assert (taken.status_code, taken.json()["agent"]) == (200, "ben")
        mine_now = await mine.post(f"/sessions/{call}/fragments", json=fragment)
        assert mine_now.status_code == 403


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"id": "a b"}, "id"),
        ({"speaker": "bot"}, "speaker"),
        ({"text": "  "}, "empty"),
        ({"text": "x" * 8001}, "8000"),
        ({"at": 1_700_000_000}, "at"),  # seconds
        ({"at": NOW + 86_400_000}, "future"),
        ({"at": "1"}, "at"),
        ({"final": "yes"}, "final"),
        ({"finl": True}, "finl"),
        ({"text": None}, "text"),
        ({"text": "a\x00b"}, "NUL"),
        ({"text": "\ud800"}, "half a character"),
    ],
)
async def test_bad_fragments_are_refused_by_name(
    telephony: Telephony, change: dict[str, object], named: str
) -> None:
    call = await telephony.call()
    good = said("u1", "customer", "fine", 0)
    bad = {**said("u2", "customer", "x", 0), **change}
    body = json.dumps({"fragments": [good, bad]})  # what is not UTF-8 is escaped
    answer = await telephony.http.post(
        f"/sessions/{call}/fragments", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (413, 422), answer.text
    assert named in answer.json()["error"]["message"]
    assert (await telephony.read(call))["transcript"] == []  # not the good one either


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"call_id": ""}, "call_id"),
        ({"call_id": "a\x00b"}, "NUL"),
        ({"agent": " anna"}, "agent"),
        ({"agent": None}, "agent"),
        ({"language": "German"}, "language"),
        ({"attributes": {"queue": 7}}, "queue"),
        ({"attributes": {"queue": "x\x00"}}, "NUL"),
        ({"attributes": {str(n): "x" for n in range(31)}}, "attributes"),
        ({"customer": ""}, "customer"),
        ({"queue": "returns"}, "queue"),
    ],
)
async def test_a_bad_beginning_is_refused_by_name(
    telephony: Telephony, change: dict[str, object], named: str
) -> None:
    body = {"site": "demo", "call_id": "pbx 1", "agent": "anna", **change}
    answer = await telephony.http.post("/sessions", json=body)
    assert answer.status_code == 422, answer.text
    assert named in answer.json()["error"]["message"]


async def test_a_customer_never_reads_their_call_in_the_chat(
    server: Running, telephony: Telephony
) -> None:
    signer = signer_of(server.services)
    call = (await telephony.begin(customer="customer 7"))["session_id"]
    head = await server.services.log.head(ConversationId(call))
    assert head is not None
    visitor = signer.visitor_id("demo", "customer 7")
    assert head.visitor == visitor  # one person: found and erased together
    token, _ = signer.issue_visitor("demo", visitor, 1, known=True)
    async with chat_tab(server, token) as mine:
        assert mine.welcome["conversation_id"] != call
    from tests.chatbot.server.room import open_tab

    async with open_tab(server) as tab:
        await tab.send("hello", token=token, conversation_id=call)
        assert (await tab.closed())[0] == 4403


async def test_a_person_is_erased_with_their_calls(server: Running, telephony: Telephony) -> None:
    call = (await telephony.begin(customer="customer 7"))["session_id"]
    await telephony.hear(call, said("u1", "customer", "my secret", 0))
    await telephony.hear(call, said("u2", "customer", "half of", 1000, final=False))
    await drafted(server, call, 1)
    assert await AssistBoard(server.services.redis).get(ConversationId(call))
    headers = {"Authorization": f"Bearer {server.services.admin_token}"}
    async with httpx.AsyncClient(base_url=f"{server.url}/v1/admin", headers=headers) as admin:
        found = await admin.post("/people/find", json={"site": "demo", "subject": "customer 7"})
        assert found.json()["conversations"] == [call]
        visitor = found.json()["visitor"]
        erased = await admin.post(
            "/people/erase",
            json={
                "request_id": "e-1",
                "site": "demo",
                "visitor": visitor,
                "confirm": visitor,
                "reason": "asked",
            },
        )
        assert erased.status_code < 300, erased.text
    assert (await telephony.http.get(f"/sessions/{call}")).status_code == 404
    keys = await server.services.redis.keys("*")
    # what stays for a while is that there was one: no word of it
    left = {key.split(call)[0] for key in keys if call in key}
    assert all(":gone:" in key or key == "fd:assist:asked:" for key in left), left
    await drafted(server, call, 1, "late")  # a worker that has not heard of it
    assert await AssistBoard(server.services.redis).get(ConversationId(call)) is None


async def test_the_desk_cannot_give_a_call_to_the_bot(
    server: Running, telephony: Telephony, anna: str
) -> None:
    call = await telephony.call()
    async with desk_tab(server, anna) as desk:
        assert [line["conversation_id"] for line in desk.welcome["conversations"]] == [call]
        await desk.send("conversation.release", conversation_id=call)
        assert (await desk.receive_until("error"))["code"] == "conflict"
        await desk.send("conversation.transfer", conversation_id=call, agent="")
        assert (await desk.receive_until("error"))["code"] == "conflict"
