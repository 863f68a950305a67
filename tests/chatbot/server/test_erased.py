"""A visitor with an open chat is erased, and comes back."""

import asyncio

from chatbot.conversation.archive import Archiver
from chatbot.conversation.events import ConversationId
from chatbot.protocol import CloseCode
from chatbot.rights.erasure import Eraser
from chatbot.rights.people import Person
from chatbot.services import Services
from tests.chatbot.server.room import Running, ScriptedWorker, chat_tab, desk_tab, open_tab


def eraser_of(services: Services) -> Eraser:
    return Eraser(services.database, services.log, services.runs, services.settings.data_dir)


async def test_while_a_reply_streams(services: Services, server: Running, anna: str) -> None:
    """The reply stops, the sockets close and say why, the desk's list loses the line; whoever
    comes back with the old token, or the old conversation's id, has an empty chat."""
    visitor = await server.visitor()
    token, person = visitor["token"], Person("demo", visitor["visitor_id"])
    gate = asyncio.Semaphore(1)
    worker = ScriptedWorker(services, ["One ", "two ", "three"], gate)
    async with worker.at_work(), desk_tab(server, anna) as desk:
        async with chat_tab(server, token) as tab:
            cid = tab.welcome["conversation_id"]
            await tab.send("message.send", client_message_id="m1", text="my secret Canary")
            await tab.receive_until("reply.delta", text="One ")
            await desk.receive_until("conversation.listed", conversation_id=cid)
            await desk.send("conversation.watch", conversation_id=cid)
            await desk.receive_until("conversation.watched")
            receipt = await eraser_of(services).erase(person, actor="ada", reason="asked")
            assert receipt.conversations == [cid]
            code, reason = await tab.closed()
            assert (code, reason) == (CloseCode.ERASED, "")
            assert tab.seen[-1]["code"] == "erased"
        gate.release()
        kinds = {"error", "conversation.listed"}
        while kinds:
            frame = await desk.receive()
            if frame.get("conversation_id") != cid:
                continue
            if frame["type"] == "error" and frame["code"] == "erased":
                kinds.discard("error")
            if frame["type"] == "conversation.listed" and frame["status"] == "closed":
                assert frame["preview"] == ""
                kinds.discard("conversation.listed")
        async with asyncio.timeout(15):
            while worker.outcomes != ["lost"]:  # noqa: ASYNC110 - another task works
                await asyncio.sleep(0.01)
    await Archiver(services.log, services.archive).copy_once()
    assert services.archive.load(ConversationId(cid)) is None
    async with chat_tab(server, token) as tab:
        assert (tab.welcome["conversation_id"], tab.welcome["events"]) == (cid, [])
        await tab.send("message.send", client_message_id="m1", text="hello again")
        accepted = await tab.receive_until("message.accepted")
        assert (accepted["offset"], accepted["duplicate"]) == (1, False)
    await Archiver(services.log, services.archive).copy_once()
    assert services.archive.recorded(ConversationId(cid)) == 1


async def test_a_chat_that_names_the_erased_conversation(
    services: Services, server: Running
) -> None:
    """A client that was away meanwhile: told that it is gone, as for any that is not there."""
    visitor = await server.visitor()
    async with chat_tab(server, visitor["token"], new_conversation=True) as tab:
        cid = tab.welcome["conversation_id"]
        await tab.send("message.send", client_message_id="m1", text="hi")
        await tab.receive_until("message.accepted")
    person = Person("demo", visitor["visitor_id"])
    await eraser_of(services).erase(person, actor="ada", reason="asked")
    async with open_tab(server) as tab:
        await tab.send("hello", token=visitor["token"], conversation_id=cid, epoch="x", offset=1)
        code, _ = await tab.closed()
        assert code == CloseCode.LOG_RESET
        assert tab.seen[-1]["code"] == "not_found"
    async with chat_tab(server, visitor["token"]) as tab:
        assert tab.welcome["events"] == []


async def test_the_other_tab_writes_at_that_moment(services: Services, server: Running) -> None:
    """Messages race the erasure: each is either erased with the others or in the new chat."""
    visitor = await server.visitor()
    async with chat_tab(server, visitor["token"]) as one:
        await one.send("message.send", client_message_id="m0", text="Canary")
        await one.receive_until("message.accepted")
        for number in range(1, 6):
            await one.send("message.send", client_message_id=f"m{number}", text="Canary")
        person = Person("demo", visitor["visitor_id"])
        await eraser_of(services).erase(person, actor="ada", reason="asked")
        code, _ = await one.closed()
        assert code == CloseCode.ERASED
    async with chat_tab(server, visitor["token"]) as two:
        assert two.welcome["events"] == []
