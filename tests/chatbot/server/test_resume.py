"""Cut the socket anywhere: what is shown in the end equals the uncut conversation."""

import asyncio

import pytest

from chatbot.conversation.events import ConversationId
from chatbot.server.follow import Follower, LogReset, seen_events, visitor_view
from tests.chatbot.server.room import DEADLINE, Frame, Running, ScriptedWorker, Tab, chat_tab, until

PIECES = ["One ", "two 😀", " thrée", " four", "\nfive ", "six."]
REPLY = "".join(PIECES)


def _cursor(tab: Tab, seen: list[Frame]) -> dict[str, object]:
    offsets = [frame["offset"] for frame in seen if "offset" in frame]
    return {
        "conversation_id": tab.welcome["conversation_id"],
        "epoch": tab.welcome["epoch"],
        "offset": max([tab.welcome["offset"], *offsets]),
    }


@pytest.mark.parametrize("meanwhile", [0, 1, 2], ids=["nothing", "one piece", "two pieces"])
async def test_cut_at_every_piece(server: Running, meanwhile: int) -> None:
    """``meanwhile``: pieces that are written while the client is away."""
    gate = asyncio.Semaphore(0)
    worker = ScriptedWorker(server.services, PIECES, gate)
    async with worker.at_work():
        for cut in range(len(PIECES) + 1):
            await _cut_and_resume(server, gate, cut, meanwhile)
            await until(lambda: worker.outcomes == ["written"] * (cut + 1))  # noqa: B023
            assert gate.locked()


async def _cut_and_resume(
    server: Running, gate: asyncio.Semaphore, cut: int, meanwhile: int
) -> None:
    token = await server.token()
    written = min(cut + meanwhile, len(PIECES))
    async with chat_tab(server, token) as tab:
        await tab.send("message.send", client_message_id="m-1", text="count")
        reply_id = (await tab.receive_until("reply.started"))["reply_id"]
        for _ in range(cut):
            gate.release()
            await tab.receive_until("reply.delta")
        before = tab.text(reply_id)
        assert before == "".join(PIECES[:cut])
        cursor = _cursor(tab, tab.seen)
        tab.socket.transport.abort()  # no close frame: as if the network went away
    for _ in range(written - cut):
        gate.release()
    await _written(server, ConversationId(tab.welcome["conversation_id"]), written)
    async with chat_tab(server, token, **cursor) as again:
        assert again.welcome["recovered"] is True
        events = again.welcome["events"]
        assert all(event["offset"] > cursor["offset"] for event in events)
        for _ in range(len(PIECES) - written):
            gate.release()
        live = again.welcome["live_reply"]
        if live is not None:
            assert live["reply_id"] == reply_id
            assert live["text"] == "".join(PIECES[:written])
            done = await again.receive_until("reply.completed")
            assert again.text(reply_id, live["text"]) == REPLY
        else:
            assert written == len(PIECES)
            known = [event for event in events if event["type"] == "reply.completed"]
            (done,) = known or [{"text": before}]  # the client saw the end before the cut
        assert done["text"] == REPLY


async def _written(server: Running, conversation_id: ConversationId, pieces: int) -> None:
    """Wait until so many pieces are in the store."""
    expected = "".join(PIECES[:pieces])
    async with asyncio.timeout(DEADLINE):
        while True:
            now = await server.services.log.catch_up(conversation_id, None, None)
            if now.live is not None and now.live.text == expected:
                return
            if pieces == len(PIECES) and now.events[-1].type == "reply.completed":
                return


async def test_a_client_without_a_cursor_gets_the_whole_history(server: Running) -> None:
    token = await server.token()
    worker = ScriptedWorker(server.services, PIECES)
    async with worker.at_work(), chat_tab(server, token) as tab:
        await tab.send("message.send", client_message_id="m-1", text="count")
        await tab.receive_until("reply.completed")
    async with chat_tab(server, token) as again:
        assert again.welcome["recovered"] is False
        kinds = [event["type"] for event in again.welcome["events"]]
        assert kinds == ["message.created", "reply.completed"]


@pytest.mark.parametrize("wrong", [{"epoch": "another"}, {"offset": 99}])
async def test_a_cursor_of_another_log_is_not_believed(
    server: Running, wrong: dict[str, object]
) -> None:
    token = await server.token()
    async with chat_tab(server, token) as tab:
        await tab.send("message.send", client_message_id="m-1", text="hi")
        await tab.receive_until("message.created")
        cursor = _cursor(tab, tab.seen)
    async with chat_tab(server, token, **(cursor | wrong)) as again:
        assert again.welcome["recovered"] is False
        assert [event["offset"] for event in again.welcome["events"]] == [1]


async def test_a_worker_that_dies_is_continued_without_a_seam(server: Running) -> None:
    gate = asyncio.Semaphore(0)
    first = ScriptedWorker(server.services, PIECES, gate)
    async with chat_tab(server) as tab:
        async with first.at_work():
            await tab.send("message.send", client_message_id="m-1", text="count")
            reply_id = (await tab.receive_until("reply.started"))["reply_id"]
            gate.release()
            await tab.receive_until("reply.delta")
        second = ScriptedWorker(server.services, PIECES)
        async with second.at_work():
            done = await tab.receive_until("reply.completed")
        assert done["text"] == tab.text(reply_id) == REPLY
        assert [frame["type"] for frame in tab.seen].count("reply.started") == 1
        assert second.replies[0].streamed == PIECES[0]


async def test_the_follower_of_a_reset_log_says_so(server: Running) -> None:
    log = server.services.log
    async with chat_tab(server) as tab:
        conversation_id = ConversationId(tab.welcome["conversation_id"])
        follower = Follower(await log.catch_up(conversation_id, None, None), visitor_view)
        assert follower.advance(await log.catch_up(conversation_id, follower.epoch, 0)) == []
        with pytest.raises(LogReset):
            follower.advance(await log.catch_up(conversation_id, "another", 0))


async def test_a_reader_that_was_busy_gets_the_pieces_and_the_end(server: Running) -> None:
    """Several steps between two looks are one step: nothing is left out."""
    log = server.services.log
    async with chat_tab(server) as tab:
        conversation_id = ConversationId(tab.welcome["conversation_id"])
    start = await log.catch_up(conversation_id, None, None)
    assert seen_events(start, visitor_view) == []
    follower = Follower(start, visitor_view)
    worker = ScriptedWorker(server.services, PIECES)
    async with worker.at_work():
        await log.append_message(
            conversation_id, role="visitor", text="count", client_message_id="m", author="v"
        )
        await until(lambda: worker.outcomes == ["written"])
    now = await log.catch_up(conversation_id, follower.epoch, follower.offset)
    frames = follower.advance(now)
    assert [frame["type"] for frame in frames] == [
        "message.created",
        "reply.started",
        "reply.delta",
        "reply.completed",
    ]
    assert frames[2]["text"] == frames[3]["text"] == REPLY
    assert follower.advance(await log.catch_up(conversation_id, follower.epoch, 2)) == []
