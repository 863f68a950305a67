"""A call over its websocket: fragments in, and everything that changes out."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from chatbot.assist.board import AssistBoard, DraftSet
from chatbot.assist.drafts import Draft
from chatbot.conversation.events import ConversationId
from chatbot.server.api_keys import list_keys, revoke_key
from chatbot.server.auth import signer_of
from tests.chatbot.server.calls.conftest import Telephony, said
from tests.chatbot.server.conftest import staff_token
from tests.chatbot.server.room import Running, Tab, make_services, open_tab, running

PAST = Draft("p0", "Which order is it?", "past", 0.7, "c-0")


@asynccontextmanager
async def stream(server: Running, call: str, token: str) -> AsyncIterator[Tab]:
    async with open_tab(server, f"/v1/assist/sessions/{call}/stream", None) as tab:
        await tab.send("hello", token=token)
        tab.welcome = await tab.receive_until("welcome")
        yield tab


async def close_code(server: Running, call: str, **hello: Any) -> int:
    async with open_tab(server, f"/v1/assist/sessions/{call}/stream", None) as tab:
        await tab.send("hello", **hello)
        return (await tab.closed())[0]


async def speak(tab: Tab, *fragments: dict[str, Any]) -> list[str]:
    await tab.send("fragments.send", request_id="r1", fragments=list(fragments))
    accepted = await tab.receive_until("fragments.accepted", request_id="r1")
    return [result["outcome"] for result in accepted["results"]]


async def test_what_is_said_goes_to_everybody_who_listens(
    server: Running, telephony: Telephony
) -> None:
    call = await telephony.call()
    panel_token = (await telephony.http.post(f"/sessions/{call}/token")).json()["token"]
    async with (
        stream(server, call, telephony.key) as recogniser,
        stream(server, call, panel_token) as panel,
    ):
        assert panel.welcome["transcript"] == []
        assert await speak(recogniser, said("u1", "customer", "Where", 0, final=False)) == ["kept"]
        [line] = (await panel.receive_until("transcript"))["lines"]
        assert (line["text"], line["final"], line["speaker"]) == ("Where", False, "customer")
        await speak(recogniser, said("u1", "customer", "Where is my other parcel", 0))
        await panel.receive_until(
            "transcript", lines=[{**line, "text": "Where is my other parcel", "final": True}]
        )
        summary = await panel.receive_until("summary")
        assert summary["open"] == ["Where is my other parcel"]
        # by HTTP it is the same call
        await telephony.hear(call, said("u2", "agent", "One moment", 1000))
        await recogniser.receive_until("summary", open=[])


async def test_drafts_grow_are_used_and_withdrawn(server: Running, telephony: Telephony) -> None:
    board = AssistBoard(server.services.redis)
    call = await telephony.call()
    name = ConversationId(call)
    async with stream(server, call, telephony.key) as tab:
        await speak(tab, said("u1", "customer", "Where is it", 0))
        job = await board.take(5)
        assert job is not None
        await board.put(name, DraftSet("s1", job.upto, "v1", (PAST,), False))
        await tab.receive_until("suggestions", complete=False)
        await board.put(name, DraftSet("s1", job.upto, "v1", (PAST,), True))
        await tab.receive_until("suggestions", complete=True)
        async with stream(server, call, telephony.key) as again:  # e.g. after a reload
            assert again.welcome["suggestions"]["suggestions_id"] == "s1"
        await tab.send(
            "suggestion.feedback",
            request_id="f1",
            suggestions_id="s1",
            displayed=True,
            accepted={"draft_id": "p0", "text": PAST.text},
        )
        await tab.receive_until("feedback.accepted", request_id="f1")
        await speak(tab, said("u2", "agent", "Which order is it", 1000))
        await tab.receive_until("suggestions.withdrawn", suggestions_id="s1")
        await tab.send("suggestion.feedback", request_id="f2", suggestions_id="s1", rejected="p9")
        refused = await tab.receive_until("error", request_id="f2")
        assert refused["code"] == "conflict"
    kinds = [e.type for e in await server.services.log.read(name)]
    assert kinds.count("suggestions.shown") == kinds.count("suggestion.accepted") == 1


async def test_closing_is_told_and_nothing_more_is_taken(
    server: Running, telephony: Telephony
) -> None:
    call = await telephony.call()
    async with stream(server, call, telephony.key) as tab:
        await speak(tab, said("u1", "customer", "Hel", 0, final=False))
        await tab.send("session.close", request_id="c1", reason="solved")
        status = await tab.receive_until("status")
        assert (status["status"], status["reason"], status["agent"]) == ("closed", "solved", "")
        await tab.send("fragments.send", request_id="r9", fragments=[said("u2", "agent", "Bye", 5)])
        assert (await tab.receive_until("error", request_id="r9"))["code"] == "conflict"
        gone = [frame["gone"] for frame in tab.seen if frame["type"] == "transcript"][-1]
        assert gone == ["u1"]


async def test_partials_end_by_themselves(telephony: Telephony, server: Running) -> None:
    services = server.services
    short = make_services(
        services.redis, services.database, services.settings.data_dir, call_partial_seconds=0.3
    )
    async with running(short) as other:
        call = await telephony.call()
        async with stream(other, call, telephony.key) as tab:
            await speak(tab, said("u1", "customer", "Hel", 0, final=False))
            await tab.receive_until("transcript", lines=[], gone=["u1"])


async def test_who_may_not_is_told_by_the_close_code(
    server: Running, telephony: Telephony, shop_key: str
) -> None:
    call = await telephony.call()
    other = (await telephony.begin("pbx 2"))["session_id"]
    panel = signer_of(server.services).issue_panel(call, 5)[0]
    assert await close_code(server, call, token="fd-none") == 4401
    assert await close_code(server, call, token=shop_key) == 4409  # no such call of theirs
    assert await close_code(server, other, token=panel) == 4409
    assert await close_code(server, call, token=panel, more=1) == 4400
    async with stream(server, call, panel) as tab:
        for kind, fields in (
            ("fragments.send", {"fragments": [said("u1", "customer", "x", 0)]}),
            ("session.close", {"reason": "x"}),
        ):
            await tab.send(kind, request_id=kind, **fields)
            refused = await tab.receive_until("error", request_id=kind)
            assert refused["code"] == "not_allowed"


async def test_a_key_that_is_revoked_meanwhile_is_out(
    server: Running, telephony: Telephony
) -> None:
    call = await telephony.call()
    async with stream(server, call, telephony.key) as tab:
        [row] = list_keys(server.services.database)
        revoke_key(server.services.database, "test", row.id)
        await tab.send("fragments.send", request_id="r1", fragments=[said("u1", "agent", "Hi", 0)])
        assert (await tab.receive_until("error", request_id="r1"))["code"] == "not_authenticated"


async def test_limits_are_told_by_name(server: Running, telephony: Telephony) -> None:
    services = server.services
    tight = make_services(
        services.redis,
        services.database,
        services.settings.data_dir,
        call_fragments_per_request=2,
        call_fragments_per_minute=4,
        call_open_partials=1,
        max_conversation_events=3,
    )
    async with running(tight) as other:
        call = await telephony.call()
        async with stream(other, call, telephony.key) as tab:

            async def refused(*fragments: dict[str, Any]) -> str:
                await tab.send("fragments.send", request_id="r", fragments=list(fragments))
                return str((await tab.receive_until("error", request_id="r"))["code"])

            three = [said(f"u{n}", "agent", "x", n) for n in range(3)]
            assert await refused(*three) == "refused"
            partials = [said(f"p{n}", "agent", "x", n, final=False) for n in range(2)]
            assert await refused(*partials) == "refused"
            assert await refused(*three[:2]) == "conversation_full"
            assert await speak(tab, three[0]) == ["kept"]
            assert await refused(*partials) == "rate_limited"
        metrics = (await telephony.http.get(f"{other.url}/metrics")).text
    for limit in (
        "call_fragments_per_request",
        "call_fragments_per_minute",
        "call_open_partials",
        "max_conversation_events",
    ):
        assert f'frontdesk_limited_total{{limit="{limit}"}} 1.0' in metrics, limit


async def test_staff_listen_with_their_login(server: Running, telephony: Telephony) -> None:
    call = await telephony.call()
    token = staff_token(server.services, "cara")
    async with stream(server, call, token) as tab:
        assert tab.welcome["session_id"] == call
