"""Several agents: who is there, who looks at what, handing over; tags and reasons."""

import json
import time

from chatbot.conversation.events import ConversationId
from chatbot.conversation.transcript import conversation_messages
from chatbot.server.limits import SocketLimits
from chatbot.server.presence import PRESENCE
from chatbot.services import Services
from tests.chatbot.server.conftest import staff_token
from tests.chatbot.server.room import (
    Frame,
    Running,
    ScriptedWorker,
    Tab,
    chat_tab,
    desk_tab,
    running,
)


async def _say(tab: Tab, text: str, message_id: str = "m-1") -> str:
    await tab.send("message.send", client_message_id=message_id, text=text)
    await tab.receive_until("message.accepted")
    return str(tab.welcome["conversation_id"])


async def _presence(desk: Tab, *agents: tuple[str, list[str]]) -> None:
    """Read until the desk was told exactly this."""
    wanted = [
        {"username": name, "role": "agent", "conversations": conversations}
        for name, conversations in agents
    ]
    await desk.receive_until("presence", agents=wanted)


async def test_desks_see_each_other_and_what_each_has_open(
    server: Running, anna: str, ben: str
) -> None:
    async with chat_tab(server) as visitor, desk_tab(server, anna) as one:
        conversation_id = await _say(visitor, "hello")
        await _presence(one, ("anna", []))
        async with desk_tab(server, ben) as two:
            await _presence(one, ("anna", []), ("ben", []))
            await two.send("conversation.watch", conversation_id=conversation_id)
            await _presence(one, ("anna", []), ("ben", [conversation_id]))
            await _presence(two, ("anna", []), ("ben", [conversation_id]))
            await two.send("conversation.unwatch", conversation_id=conversation_id)
            await _presence(one, ("anna", []), ("ben", []))
        await _presence(one, ("anna", []))
    assert await server.services.redis.hlen(PRESENCE) == 0  # type: ignore[misc]


async def test_the_desks_of_a_dead_server_are_forgotten(services: Services) -> None:
    anna = staff_token(services, "anna")
    entry = {"username": "ben", "role": "agent", "conversations": [], "at": time.time()}
    await services.redis.hset(PRESENCE, "dead", json.dumps(entry))  # type: ignore[misc]
    limits = SocketLimits(presence_interval=0.3)
    async with running(services, limits=limits) as server, desk_tab(server, anna) as desk:
        await _presence(desk, ("anna", []), ("ben", []))
        await _presence(desk, ("anna", []))
    assert not await services.redis.hexists(PRESENCE, "dead")  # type: ignore[misc]


async def _error(desk: Tab, kind: str, **fields: object) -> Frame:
    await desk.send(kind, **fields)
    return await desk.receive_until("error")


async def test_a_conversation_is_handed_to_a_colleague_and_back_into_the_queue(
    server: Running, anna: str, ben: str
) -> None:
    async with (
        chat_tab(server) as visitor,
        desk_tab(server, anna) as one,
        desk_tab(server, ben) as two,
    ):
        about = {"conversation_id": await _say(visitor, "hello")}
        early = await _error(one, "conversation.transfer", **about, agent="ben")
        assert "take it over first" in early["message"]
        await one.send("conversation.claim", **about)
        await visitor.receive_until("status.changed", status="human", agent="anna")
        assert (await _error(two, "conversation.transfer", **about, agent="ben"))[
            "code"
        ] == "conflict"
        nobody = await _error(one, "conversation.transfer", **about, agent="carl")
        assert nobody["message"] == "there is no agent carl"

        await one.send("conversation.transfer", **about, agent="ben", reason="knows refunds")
        moved = await visitor.receive_until("status.changed", agent="ben")
        assert "reason" not in moved
        await two.send("message.send", **about, client_message_id="b-1", text="I am Ben")
        await visitor.receive_until("message.created", author="ben")
        late = await _error(one, "message.send", **about, client_message_id="a-1", text="and me")
        assert late["code"] == "conflict"

        await two.send("conversation.transfer", **about)
        await visitor.receive_until("status.changed", status="waiting")
        line = await one.receive_until("conversation.listed", status="waiting")
        assert line["reason"] == "ben put it back"
        events = await server.services.log.read(ConversationId(about["conversation_id"]))
        reasons = [e.data["reason"] for e in events if e.type == "status.changed"]
        assert reasons == ["claimed", "knows refunds", "ben put it back"]


async def test_a_release_is_a_boundary_that_the_model_does_not_read(
    server: Running, anna: str
) -> None:
    worker = ScriptedWorker(server.services, ["Done."])
    async with chat_tab(server) as visitor, desk_tab(server, anna) as desk:
        about = {"conversation_id": await _say(visitor, "hello")}
        await desk.send("conversation.claim", **about)
        await desk.send("conversation.release", **about)
        await desk.receive_until("conversation.listed", status="bot", reason="released")
        async with worker.at_work():
            await visitor.receive_until("reply.completed")
    events = await server.services.log.read(ConversationId(about["conversation_id"]))
    boundary = next(e for e in events if e.data.get("reason") == "released")
    assert (boundary.data["status"], boundary.data["previous"]) == ("bot", "human")
    assert boundary.data["actor"] == "anna"
    assert [message["content"] for message in conversation_messages(events, "")] == [
        "hello",
        "Done.",
    ]


async def test_tags_are_for_staff(server: Running, anna: str) -> None:
    async with chat_tab(server) as visitor, desk_tab(server, anna) as desk:
        about = {"conversation_id": await _say(visitor, "hello")}
        await desk.send("conversation.watch", **about)
        await desk.receive_until("conversation.watched")
        await desk.send("tags.set", **about, tags=["  Refund ", "refund", "VIP  customer"])
        event = await desk.receive_until("tags.changed")
        assert event["tags"] == ["refund", "vip customer"]
        assert event["actor"] == "anna"
        line = await desk.receive_until("conversation.listed", tags=["refund", "vip customer"])
        assert line["preview"] == "hello"
        await desk.send("tags.set", **about, tags=[])
        await desk.receive_until("conversation.listed", tags=[])
        assert "tags.changed" not in {frame["type"] for frame in await visitor.drain()}


async def test_a_line_says_who_waits_since_when_and_why(server: Running, anna: str) -> None:
    async with chat_tab(server) as visitor, desk_tab(server, anna) as desk:
        about = {"conversation_id": await _say(visitor, "hello")}
        asked = await desk.receive_until("conversation.listed", preview="hello")
        first = (await server.services.log.read(ConversationId(about["conversation_id"])))[0]
        assert asked["asked_at"] == first.at
        await visitor.send("handoff.request")
        moved = await visitor.receive_until("status.changed")
        line = await desk.receive_until("conversation.listed", status="waiting")
        assert (line["since"], line["reason"]) == (moved["at"], "the visitor asked for a person")
        await desk.send("conversation.claim", **about)
        await desk.send("message.send", **about, client_message_id="a-1", text="hi")
        line = await desk.receive_until("conversation.listed", preview="hi")
        assert line["asked_at"] == 0
