"""Servers and workers are replaced one after the other while a reply is being written."""

import asyncio
from typing import Any

from chatbot.services import Services
from chatbot.worker.worker import Worker
from tests.chatbot.server.room import DEADLINE, chat_tab, make_services, running, until
from tests.chatbot.worker.scripted_engine import ScriptedEngine

REPLY = "A reply that is written by two workers and read from two servers. " * 4
LEASE = 3600.0  # what waits for a lease to run out does not come back in a test's time


def _work(services: Services, engine: ScriptedEngine, stop: asyncio.Event) -> Any:
    return asyncio.create_task(Worker(services, engine, "w", drain_seconds=0.1).run(stop))


async def test_a_rolling_restart_loses_nothing(redis: Any, database: Any, tmp_path: Any) -> None:
    """The old worker gives the reply back, the new one goes on at once; the old server says
    goodbye, the visitor goes on at the new one. Nothing waits for a time-out of anything."""
    services = make_services(redis, database, tmp_path, lease_seconds=LEASE)
    services.versions.ensure_base("smollm2-135m")
    engines = [ScriptedEngine(lambda _: REPLY) for _ in range(2)]
    stops = [asyncio.Event() for _ in range(2)]
    engines[0].hold_at, engines[1].hold_at = 60, 120
    works = [_work(services, engines[0], stops[0])]
    async with running(services) as new_server:
        async with running(services) as old_server:
            token = await old_server.token()
            async with chat_tab(old_server, token) as tab:
                await tab.send("message.send", client_message_id="m-1", text="hi")
                reply_id = (await tab.receive_until("reply.started"))["reply_id"]
                while len(tab.text(reply_id)) < 60:
                    await tab.receive()
                # the worker is replaced
                works.append(_work(services, engines[1], stops[1]))
                stops[0].set()
                await works[0]
                while len(tab.text(reply_id)) < 120:
                    await tab.receive()
                # and the server, while the reply stands still
                old_server.server.should_exit = True
                assert await tab.closed() == (1001, "")
                seen = tab.text(reply_id)
        cursor = {"epoch": tab.welcome["epoch"], "offset": 1}
        name = tab.welcome["conversation_id"]
        async with chat_tab(new_server, token, conversation_id=name, **cursor) as again:
            live = again.welcome["live_reply"]
            assert again.welcome["recovered"]
            assert (live["reply_id"], live["text"][: len(seen)]) == (reply_id, seen)
            engines[1].go.set()
            done = await again.receive_until("reply.completed")
            assert again.text(reply_id, live["text"]) == done["text"] == REPLY
        stops[1].set()
        async with asyncio.timeout(DEADLINE):
            await works[1]


async def test_sockets_go_on_working_until_their_turn_to_close(
    redis: Any, database: Any, tmp_path: Any, monkeypatch: Any
) -> None:
    """A server that stops spreads its goodbyes, so that the others are not stormed."""
    services = make_services(redis, database, tmp_path)
    monkeypatch.setattr("chatbot.server.state.CLOSES_PER_SECOND", 0.1)
    monkeypatch.setattr("chatbot.server.sockets.random.random", lambda: 1.0)
    async with running(services) as server, chat_tab(server) as tab:
        server.server.should_exit = True
        await until(server.room.stopping.is_set)
        assert server.room.goodbye_seconds == 2.5  # half of the time to stop
        await tab.send("message.send", client_message_id="m-1", text="hi")
        await tab.receive_until("message.accepted")
        assert await tab.closed() == (1001, "")
