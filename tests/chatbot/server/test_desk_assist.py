"""Drafts at the desk: asked for, shown, withdrawn, sent, and what became of them."""

from typing import Any

from chatbot.assist.board import AssistBoard, AssistJob, DraftSet
from chatbot.assist.drafts import Draft
from chatbot.conversation.archive import Archive
from chatbot.conversation.events import ConversationId, Event
from finetune.preferences import preference_pairs
from tests.chatbot.server.room import Frame, Running, Tab, chat_tab, desk_tab

PAST = Draft("p0", "Which order is it?", "past", 0.7, "c-0")
OWN = Draft("m0", "We will look into it.", "model", 0.4, "v1")
BLAND = Draft("p1", "Goodbye.", "past", 0.1, "c-9")


def draft_set(upto: int, name: str = "s1", complete: bool = True) -> DraftSet:
    return DraftSet(name, upto, "v1", (PAST, OWN, BLAND), complete)


async def _say(tab: Tab, text: str, message_id: str) -> int:
    await tab.send("message.send", client_message_id=message_id, text=text)
    return int(
        (await tab.receive_until("message.accepted", client_message_id=message_id))["offset"]
    )


async def _held(visitor: Tab, desk: Tab) -> ConversationId:
    """A visitor has asked, and the desk holds and watches the conversation."""
    await _say(visitor, "Where is my parcel?", "m-1")
    name = ConversationId(visitor.welcome["conversation_id"])
    await desk.send("conversation.claim", conversation_id=name)
    await visitor.receive_until("status.changed", status="human")
    await desk.send("conversation.watch", conversation_id=name)
    await desk.receive_until("conversation.watched")
    return name


async def _write(desk: Tab, name: str, text: str, message_id: str, **ref: str) -> Frame:
    await desk.send(
        "message.send",
        conversation_id=name,
        client_message_id=message_id,
        text=text,
        suggestion=ref,
    )
    while True:
        frame = await desk.receive()
        if frame.get("client_message_id") == message_id and frame["type"] in (
            "message.accepted",
            "error",
        ):
            return frame


async def _events(server: Running, name: ConversationId, *kinds: str) -> list[Event]:
    return [event for event in await server.services.log.read(name) if event.type in kinds]


async def test_drafts_are_asked_for_once_and_sent_as_they_grow(server: Running, anna: str) -> None:
    board = AssistBoard(server.services.redis)
    async with chat_tab(server) as visitor, desk_tab(server, anna) as desk:
        name = await _held(visitor, desk)
        job = await board.take(5)
        assert job == AssistJob(name, 1)
        await board.put(name, draft_set(1, complete=False))
        frame = await desk.receive_until("suggestions", complete=False)
        assert [draft["text"] for draft in frame["drafts"]] == [PAST.text, OWN.text, BLAND.text]
        assert frame["conversation_id"] == name
        await board.put(name, draft_set(1))
        await desk.receive_until("suggestions", complete=True)
        async with desk_tab(server, anna) as again:  # e.g. after a reload
            await again.send("conversation.watch", conversation_id=name)
            await again.receive_until("suggestions", complete=True)
        assert await board.take(0.05) is None
        assert "suggestions" not in {frame["type"] for frame in await visitor.drain()}


async def test_nobody_drafts_while_the_bot_answers_or_a_colleague_holds_it(
    server: Running, anna: str, ben: str
) -> None:
    board = AssistBoard(server.services.redis)
    async with (
        chat_tab(server) as visitor,
        desk_tab(server, anna) as one,
        desk_tab(server, ben) as two,
    ):
        await _say(visitor, "Where is my parcel?", "m-1")
        name = visitor.welcome["conversation_id"]
        await two.send("conversation.watch", conversation_id=name)
        await two.receive_until("conversation.watched")
        await one.send("conversation.claim", conversation_id=name)
        await two.receive_until("status.changed")
        await board.put(name, draft_set(1))
        assert await board.take(0.05) is None
        await one.send("conversation.transfer", conversation_id=name)
        await two.receive_until("suggestions", suggestions_id="s1")  # whoever comes may need them


async def test_a_draft_whose_conversation_moved_on_is_withdrawn_and_never_sent(
    server: Running, anna: str
) -> None:
    board = AssistBoard(server.services.redis)
    async with chat_tab(server) as visitor, desk_tab(server, anna) as desk:
        name = await _held(visitor, desk)
        await board.put(name, draft_set(1))
        await desk.receive_until("suggestions")
        offset = await _say(visitor, "Never mind, cancel it", "m-2")
        await desk.receive_until("suggestions.withdrawn", suggestions_id="s1")
        late = await _write(desk, name, PAST.text, "a-1", suggestions_id="s1", draft_id="p0")
        assert late["code"] == "conflict"
        assert "moved on" in late["message"]
        await board.put(name, draft_set(offset, "s2"))  # a set for the new question
        wrong = await _write(desk, name, PAST.text, "a-2", suggestions_id="s1", draft_id="p0")
        assert wrong["code"] == "conflict"
        sent = await _write(desk, name, OWN.text, "a-3", suggestions_id="s2", draft_id="m0")
        assert sent["type"] == "message.accepted"
        twice = await _write(desk, name, PAST.text, "a-4", suggestions_id="s2", draft_id="p0")
        assert twice["code"] == "conflict"  # the question was answered
        texts = [e.data["text"] for e in await _events(server, name, "message.created")]
        assert texts == ["Where is my parcel?", "Never mind, cancel it", OWN.text]


async def _feedback(desk: Tab, name: str, **what: Any) -> None:
    await desk.send("suggestion.feedback", conversation_id=name, suggestions_id="s1", **what)


async def test_an_edited_draft_is_in_the_preference_data_with_both_texts(
    server: Running, anna: str
) -> None:
    board = AssistBoard(server.services.redis)
    edited = "Which order is it, please? Write to ann@example.org."
    async with chat_tab(server) as visitor, desk_tab(server, anna) as desk:
        name = await _held(visitor, desk)
        await board.put(name, draft_set(1))
        await desk.receive_until("suggestions")
        for _ in range(2):  # once is enough
            await _feedback(desk, name, displayed=True)
            await _feedback(desk, name, rejected="m0")
        await _write(desk, name, edited, "a-1", suggestions_id="s1", draft_id="p0")
        created = await visitor.receive_until("message.created", role="agent")
        assert "suggestion" not in created
        await desk.send("conversation.release", conversation_id=name)
        await visitor.receive_until("status.changed", status="bot")

    (shown,) = await _events(server, name, "suggestions.shown")
    assert [draft["id"] for draft in shown.data["drafts"]] == ["p0", "m0", "p1"]
    assert shown.data["actor"] == "anna"
    (rejected,) = await _events(server, name, "suggestion.rejected")
    assert rejected.data["draft"]["text"] == OWN.text
    services = server.services
    head = await services.log.head(name)
    assert head is not None
    Archive(services.database).store(head, await services.log.read(name))
    pairs = list(preference_pairs(services.database, lambda site: f"You serve {site}."))
    assert [pair["meta"]["kind"] for pair in pairs] == ["edited", "rejected", "passed_over"]
    first = pairs[0]
    assert first["prompt"] == [
        {"role": "system", "content": "You serve demo."},
        {"role": "user", "content": "Where is my parcel?"},
    ]
    assert first["rejected"] == [{"role": "assistant", "content": PAST.text}]
    (chosen,) = first["chosen"]
    assert chosen["content"] == "Which order is it, please? Write to [EMAIL]."
    assert [pair["rejected"][0]["content"] for pair in pairs[1:]] == [OWN.text, BLAND.text]
