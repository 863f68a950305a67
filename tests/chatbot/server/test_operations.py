"""Health, metrics, limits, the hub, and an orderly stop."""

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from chatbot.conversation.events import ConversationId, VisitorId
from chatbot.crew import Crew, end_tasks, run_together
from chatbot.errors import RateLimited, StoreUnavailable
from chatbot.presence import WorkerState
from chatbot.server import hub as hub_module
from chatbot.server.hub import MANY, AnyWatcher, Hub, Watcher
from chatbot.server.limits import FrameBudget, RateLimiter
from chatbot.services import Services
from tests.chatbot.server.room import (
    DEADLINE,
    Running,
    ScriptedWorker,
    chat_tab,
    open_tab,
    running,
    until,
)

METRICS_PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


# -- health and metrics


async def test_health(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async with httpx.AsyncClient(base_url=server.url) as http:
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        answer = await http.get("/readyz")
        assert (answer.status_code, answer.json()["away"]) == (503, ["workers"])
        assert (await http.get("/readyz?ignore=workers")).status_code == 200
        await server.room.workers.tell("w-1", WorkerState(4, 0, None))
        assert (await http.get("/readyz")).json()["status"] == "ok"
        await server.room.workers.leave("w-1")
        assert (await http.get("/readyz")).json()["checks"]["workers"] == "none is alive"
        await server.room.workers.tell("w-1", WorkerState(4, 0, None))

        def away(_: object) -> None:
            raise StoreUnavailable("postgresql://secret is away")

        monkeypatch.setattr("chatbot.record.database.Database.ping", away)
        answer = await http.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["away"] == ["record"]
        assert "secret" not in answer.text


async def test_metrics_count_what_happens(server: Running) -> None:
    worker = ScriptedWorker(server.services, ["a", "b"])
    async with worker.at_work(), chat_tab(server) as tab:
        await tab.send("message.send", client_message_id="m-1", text="hi")
        await tab.receive_until("reply.completed")
        await tab.send("message.send", client_message_id="m-2", text=" ")
        await tab.receive_until("error")
        async with httpx.AsyncClient(base_url=server.url) as http:
            text = (await http.get("/metrics")).text
    assert 'frontdesk_sockets_open{kind="chat"} 1.0' in text
    assert 'frontdesk_messages_total{role="visitor"} 1.0' in text
    assert re.search(r'frontdesk_deltas_sent_total\{kind="chat"\} [12]\.0', text)
    assert 'frontdesk_errors_total{code="refused"} 1.0' in text
    assert 'route="/v1/visitors",status="200"' in text


async def test_paths_that_do_not_exist_make_no_new_series(server: Running) -> None:
    async with httpx.AsyncClient(base_url=server.url) as http:
        for number in range(3):
            await http.get(f"/no/such/{number}")
        text = (await http.get("/metrics")).text
    assert "/no/such" not in text


async def test_the_document_lists_every_metric(server: Running) -> None:
    """Those, and no others."""
    section = METRICS_PAGE.read_text().partition("## Server")[2].partition("## Worker")[0]
    documented = set(re.findall(r"^\| `(frontdesk_\w+)` \|", section, re.MULTILINE))
    names = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in server.room.metrics.registry.collect()
    }
    assert documented == names


# -- limits


async def test_the_rate_is_counted_in_the_store(redis: Redis) -> None:
    one, two = (RateLimiter(redis, "test", 3) for _ in range(2))
    for limiter in (one, two, one):
        await limiter.take("a", "messages")
    with pytest.raises(RateLimited) as limited:
        await two.take("a", "messages")
    assert 0 < limited.value.retry_after <= 20
    await two.take("b", "messages")
    assert 0 < await redis.pttl("fd:rate:test:a") <= 60_001  # forgotten by itself


async def _take_all(limiter: RateLimiter) -> RateLimited:
    """Take until it refuses."""
    try:
        while True:
            await limiter.take("a", "messages")
    except RateLimited as refusal:
        return refusal


async def test_the_rate_recovers(redis: Redis) -> None:
    limiter = RateLimiter(redis, "test", 120)  # one each 0.5 s
    limited = await _take_all(limiter)
    assert 0 < limited.retry_after <= 0.5
    await asyncio.sleep(limited.retry_after + 0.01)
    await limiter.take("a", "messages")


def test_frame_budget() -> None:
    now = 0.0
    budget = FrameBudget(per_second=2, burst=3, clock=lambda: now)
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    now = 0.5
    assert [budget.take() for _ in range(2)] == [True, False]
    now = 100.0
    assert [budget.take() for _ in range(4)] == [True, True, True, False]


# -- the hub


async def _wait(watcher: Watcher) -> None:
    async with asyncio.timeout(DEADLINE):
        await watcher.wait()


async def test_watchers_are_woken_by_their_conversation(services: Services) -> None:
    hub = Hub(services.log, services.redis)
    mine, other = ConversationId("c-1"), ConversationId("c-2")
    for name in (mine, other):
        await services.log.create(name, site="demo", visitor=VisitorId("v"))
    with hub.watch(mine) as one, hub.watch(mine) as two, hub.watch(other) as three:
        await hub.start()
        for watcher in (one, two, three):
            await _wait(watcher)  # the subscription began: look at everything
        for number in range(100):
            await services.log.append_message(
                mine, role="visitor", text="x", client_message_id=f"m-{number}", author="v"
            )
        await _wait(one)
        await _wait(two)
        assert not three._event.is_set()
        await hub.stop()
    assert not hub._watchers


async def test_a_watcher_is_a_flag_not_a_queue() -> None:
    watcher = Watcher()
    for _ in range(1000):
        watcher.wake()
    await _wait(watcher)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await watcher.wait()


def test_a_desks_watcher_stays_bounded() -> None:
    watcher = AnyWatcher()
    watcher.mark(ConversationId("c-1"))
    assert watcher.take() == {"c-1"}
    assert watcher.take() == set()
    for number in range(2 * MANY):
        watcher.mark(ConversationId(f"c-{number}"))
        assert len(watcher._changed) <= MANY
    assert watcher.take() is None
    watcher.mark(None)
    assert watcher.take() is None


async def test_a_lost_subscription_is_made_again(
    services: Services, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = 0

    async def changes() -> AsyncIterator[ConversationId | None]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise StoreUnavailable("gone")
        yield ConversationId("c-1")
        await asyncio.Event().wait()

    monkeypatch.setattr(services.log, "changes", changes)
    monkeypatch.setattr(hub_module, "FIRST_RETRY", 0.01)
    hub = Hub(services.log, services.redis)
    with hub.watch_all() as watcher:
        await hub.start()
        await _wait(watcher)
        await until(lambda: calls == 2)
        await hub.stop()
    assert "subscription_lost" in capsys.readouterr().out


# -- tasks


async def test_the_first_failure_ends_all() -> None:
    ended = asyncio.Event()

    async def long() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def fail() -> None:
        raise KeyError("first")

    with pytest.raises(KeyError):
        await run_together(long(), fail())
    assert ended.is_set()


async def test_a_task_may_end_by_itself() -> None:
    crew = Crew()

    async def short() -> None:
        return

    async def fail_later(task: asyncio.Task[None]) -> None:
        await asyncio.wait([task])
        raise KeyError

    crew.spawn(fail_later(crew.spawn(short())))
    with pytest.raises(KeyError):
        await crew.run()


async def test_a_cancellation_that_gets_lost_is_repeated() -> None:
    lost = 0

    async def deaf() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost += 1
                if lost == 3:
                    raise

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE):
        await end_tasks([task])
    assert lost == 3


# -- the end


async def test_a_server_that_stops_says_so(services: Services) -> None:
    async with running(services) as server:
        async with chat_tab(server) as tab, open_tab(server) as silent:
            server.server.should_exit = True
            assert await tab.closed() == (1001, "")
            assert await silent.closed() == (1001, "")
        assert server.room._open == 0


async def test_pings_find_half_open_sockets(services: Services) -> None:
    """A peer that answers no ping is gone, also if it sends."""
    pings = {"ws_ping_interval": 0.2, "ws_ping_timeout": 0.2}
    async with running(services, **pings) as server, open_tab(server) as tab:
        await tab.send("hello", token=await server.token())
        await tab.receive_until("welcome")
        tab.socket.transport.pause_reading()  # a network that swallows what we send
        await until(lambda: server.room._open == 0)
        tab.socket.transport.resume_reading()
