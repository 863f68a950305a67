"""What visitors, addresses and sites may do at most, over several servers, and who is told what."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import connect

from chatbot.budgets import TokenBudgets, readable_time
from chatbot.conversation.events import ConversationId
from chatbot.errors import BudgetSpent, Overloaded, RateLimited, SettingsError
from chatbot.presence import ALIVE_SECONDS, KEY, WorkerPresence, WorkerState
from chatbot.server.limits import FrameLease, RateLimiter, counted_address
from chatbot.server.open_sockets import OpenSockets
from chatbot.server.reply_queue import QueueState, check_queue
from chatbot.server.run import checked_proxies
from chatbot.services import Services
from chatbot.settings import Settings
from tests.chatbot.server.room import (
    ORIGIN,
    Running,
    ScriptedWorker,
    Tab,
    chat_tab,
    make_services,
    open_tab,
    running,
    until,
)

Make = Callable[..., Services]


@pytest.fixture
def limited(redis: Any, database: Any, tmp_path: Any) -> Make:
    """Services with some settings."""
    return lambda **settings: make_services(redis, database, tmp_path, **settings)


async def _say(tab: Tab, name: str, text: str = "hi") -> dict[str, Any]:
    """Send a message; what the server answers."""
    await tab.send("message.send", client_message_id=name, text=text)
    while True:
        frame = await tab.receive()
        if frame.get("client_message_id") == name and frame["type"] != "message.created":
            return frame


def _counted(server: Running, limit: str) -> float:
    labels = {"limit": limit}
    registry = server.room.metrics.registry
    return registry.get_sample_value("frontdesk_limited_total", labels) or 0.0


# -- addresses


def test_what_counts_as_one_address() -> None:
    assert counted_address("203.0.113.7") == "203.0.113.7"
    assert counted_address("::ffff:203.0.113.7") == "203.0.113.7"
    one = counted_address("2001:db8:1:2:aaaa::1")
    assert one == counted_address("2001:db8:1:2:bbbb::2") == "2001:db8:1:2::/64"
    assert counted_address("2001:db8:1:3::1") != one
    assert len(counted_address("x" * 1000)) == 64


def test_trusted_proxies_are_addresses_or_networks() -> None:
    assert checked_proxies(" 10.0.0.0/8, ::1 ,") == "10.0.0.0/8,::1"
    assert checked_proxies("10.0.0.1,*") == "*"
    for wrong in ("proxy.example", "10.0.0.0/99", "10.0.0.1/8"):
        with pytest.raises(SettingsError, match="TRUSTED_PROXIES"):
            checked_proxies(wrong)


@pytest.mark.parametrize(("trusted", "statuses"), [("127.0.0.1", [200, 200]), ("", [200, 429])])
async def test_only_a_trusted_proxy_says_who_asks(
    limited: Make, trusted: str, statuses: list[int]
) -> None:
    services = limited(visitors_per_minute=1, trusted_proxies=trusted)
    async with running(services) as server, httpx.AsyncClient(base_url=server.url) as http:
        answers = [
            await http.post(
                "/v1/visitors",
                json={"site": "demo"},
                headers={"Origin": ORIGIN, "X-Forwarded-For": f"198.51.100.9, {address}"},
            )
            for address in ("203.0.113.7", "203.0.113.8")
        ]
    assert [answer.status_code for answer in answers] == statuses


# -- rates


async def test_messages_per_minute_of_an_address(limited: Make) -> None:
    async with running(limited(messages_per_minute_per_address=2)) as server:
        async with chat_tab(server) as one, chat_tab(server) as two:
            assert (await _say(one, "m-1"))["type"] == "message.accepted"
            assert (await _say(two, "m-2"))["type"] == "message.accepted"
            refused = await _say(two, "m-3")
            assert refused["code"] == "rate_limited"
            assert 0 < refused["retry_after"] <= 30
        assert _counted(server, "messages_per_minute_per_address") == 1


async def test_new_conversations_of_an_address(limited: Make) -> None:
    services = limited(conversations_per_address=2, conversations_hours=3)
    async with running(services) as server:
        token = await server.token()
        async with chat_tab(server, token), chat_tab(server, token, new_conversation=True):
            pass
        async with open_tab(server) as third:
            await third.send("hello", token=token, new_conversation=True)
            assert await third.closed() == (4429, "")
            assert "at most 2 in 3 hours" in third.seen[0]["message"]
            assert 0 < third.seen[0]["retry_after"] <= 1.5 * 3600
        async with chat_tab(server, token):  # an old conversation is always open
            pass
        assert _counted(server, "conversations_per_address") == 1


async def test_a_flood_of_frames_ends_the_socket(limited: Make) -> None:
    async with running(limited(frames_per_minute=60)) as server, chat_tab(server) as tab:
        for _ in range(20):
            await tab.send("typing")
        assert await tab.closed() == (4429, "")
        assert _counted(server, "frames_per_minute") == 1


async def test_frames_are_counted_over_all_sockets(limited: Make) -> None:
    """Twenty at a time: two sockets take what a visitor may send, the third gets nothing."""
    services = limited(frames_per_minute=40)
    async with running(services) as one, running(services) as two:
        token = await one.token()
        async with (
            chat_tab(one, token) as here,
            chat_tab(two, token) as there,
            chat_tab(two, token) as third,
        ):
            await here.drain()
            await there.drain()
            await third.send("ping")
            assert await third.closed() == (4429, "")
            assert third.seen[-1]["code"] == "rate_limited"
            await here.drain()  # it has nineteen left


async def test_frames_go_on_while_the_store_is_away() -> None:
    away = Redis.from_url("redis://127.0.0.1:1", decode_responses=True)
    lease = FrameLease([(RateLimiter(away, "frames_per_minute", 12), "v")])
    for _ in range(100):
        await lease.take()
    await away.aclose()


async def test_a_conversation_has_an_end(limited: Make) -> None:
    async with running(limited(max_conversation_events=2)) as server, chat_tab(server) as tab:
        await _say(tab, "m-1")
        await _say(tab, "m-2")
        await tab.receive_until("message.created", client_message_id="m-2")
        refused = await _say(tab, "m-3")
        assert (refused["code"], "retry_after" in refused) == ("conversation_full", False)
        assert _counted(server, "max_conversation_events") == 1


async def test_a_body_that_is_too_large_is_refused(limited: Make) -> None:
    async with (
        running(limited(max_body_bytes=2000)) as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):
        body = b'{"site": "demo", "more": "' + b"x" * 3000 + b'"}'

        async def pieces() -> Any:
            for start in range(0, len(body), 100):
                yield body[start : start + 100]

        for content in (body, pieces()):  # announced, and not
            answer = await http.post("/v1/visitors", content=content)
            assert answer.status_code == 413, answer.text
            assert answer.json()["error"]["code"] == "too_large"
        assert _counted(server, "max_body_bytes") == 2


# -- open sockets


async def test_open_sockets_are_counted_over_all_servers(limited: Make) -> None:
    services = limited(sockets_per_visitor=2)
    async with running(services) as one, running(services) as two:
        token = await one.token()
        async with chat_tab(one, token), chat_tab(two, token), open_tab(one) as third:
            await third.send("hello", token=token)
            assert await third.closed() == (4429, "")
            assert third.seen[0]["retry_after"] > 0
            async with chat_tab(one):  # another visitor
                pass
        await until(lambda: not one.room.open_sockets._entries and not two.room.sockets)
        await two.room.open_sockets.left()
        async with chat_tab(one, token), chat_tab(one, token):
            pass  # the others are gone
        assert _counted(one, "sockets_per_visitor") == 1


@pytest.mark.parametrize("limit", ["sockets_per_address", "sockets_per_site"])
async def test_open_sockets_of_an_address_and_a_site(limited: Make, limit: str) -> None:
    async with running(limited(**{limit: 1})) as server:
        async with chat_tab(server), open_tab(server) as second:
            if limit == "sockets_per_site":  # an address is known before its hello
                await second.send("hello", token=await server.token())
            code, _ = await second.closed()
            assert (code, second.seen[0]["code"]) == (4429, "rate_limited")
        assert _counted(server, limit) == 1


async def test_open_sockets_of_a_server(limited: Make) -> None:
    async with running(limited(sockets_per_server=1)) as server:
        async with chat_tab(server), open_tab(server) as second:
            assert await second.closed() == (1013, "")
        assert _counted(server, "sockets_per_server") == 1


async def test_sockets_of_a_dead_server_stop_counting(redis: Redis) -> None:
    dead, alive = OpenSockets(redis), OpenSockets(redis)
    async with dead.hold("sockets_per_visitor", "v", 1):
        with pytest.raises(RateLimited):
            async with alive.hold("sockets_per_visitor", "v", 1):
                pass
        ((key, member),) = dead._entries
        seconds, _ = await redis.time()
        assert seconds < await redis.zscore(key, member) <= seconds + 61
        assert 0 < await redis.ttl(key) <= 61
        await redis.zadd(key, {member: seconds - 1})  # it renewed nothing, and its time has come
        async with alive.hold("sockets_per_visitor", "v", 1):
            pass


async def test_sockets_are_renewed_also_after_the_store_lost_them(redis: Redis) -> None:
    one, two = OpenSockets(redis), OpenSockets(redis)
    async with one.hold("sockets_per_visitor", "v", 1):
        await redis.flushdb()
        await one.renew()
        with pytest.raises(RateLimited):
            async with two.hold("sockets_per_visitor", "v", 1):
                pass


async def test_without_the_store_a_server_counts_its_own_sockets() -> None:
    away = Redis.from_url("redis://127.0.0.1:1", decode_responses=True)
    sockets = OpenSockets(away)
    async with sockets.hold("sockets_per_visitor", "v", 1):
        with pytest.raises(RateLimited):
            async with sockets.hold("sockets_per_visitor", "v", 1):
                pass
        async with sockets.hold("sockets_per_visitor", "w", 1):
            pass
    async with sockets.hold("sockets_per_visitor", "v", 1):
        pass
    await sockets.left()
    await away.aclose()


# -- tokens a day


async def test_tokens_are_counted_until_the_end_of_the_day(redis: Redis) -> None:
    budgets = TokenBudgets(redis, Settings(tokens_per_visitor=100, tokens_per_site=150))
    await budgets.spend("shop", "v-1", 99)
    await budgets.check("shop", "v-1")
    await asyncio.gather(*(budgets.spend("shop", "v-1", 1) for _ in range(20)))
    seconds, _ = await redis.time()
    with pytest.raises(BudgetSpent) as spent:
        await budgets.check("shop", "v-1")
    assert spent.value.data["limit"] == "tokens_per_visitor"
    assert spent.value.retry_after == pytest.approx(86400 - int(seconds) % 86400, abs=2)
    assert readable_time(spent.value.retry_after) in str(spent.value)
    await budgets.check("shop", "v-2")
    await budgets.spend("shop", "v-2", 40)
    with pytest.raises(BudgetSpent) as spent:
        await budgets.check("shop", "v-3")
    assert spent.value.data["limit"] == "tokens_per_site"
    await budgets.check("other", "v-1")
    key = "fd:tokens:visitor:shop:v-1"
    assert 3600 <= await redis.ttl(key) <= 86400 + 3600
    await redis.hset(key, "day", int(seconds) // 86400 - 1)  # the next day
    assert await budgets._spent(keys=[key]) == [0, pytest.approx(86400, abs=86400)]
    await budgets.spend("shop", "v-1", 5)
    assert await redis.hget(key, "tokens") == "5"


async def test_a_spent_budget_is_told_and_people_are_still_there(limited: Make) -> None:
    async with running(limited(tokens_per_visitor=10)) as server:
        visitor = await server.visitor()
        await server.room.budgets.spend("demo", visitor["visitor_id"], 10)
        async with chat_tab(server, visitor["token"]) as tab:
            refused = await _say(tab, "m-1")
            assert refused["code"] == "budget_spent"
            assert 0 < refused["retry_after"] <= 86400
            assert "ask for a person" in refused["message"]
            assert await server.services.log.queue_length() == 0
            await tab.send("handoff.request")
            await tab.receive_until("status.changed", status="waiting")
            assert (await _say(tab, "m-2"))["type"] == "message.accepted"
        assert _counted(server, "tokens_per_visitor") >= 1


def test_times_that_are_left_are_readable() -> None:
    assert [readable_time(s) for s in (0.01, 12, 59.5, 60, 61, 3600, 86399)] == [
        "1 s",
        "12 s",
        "60 s",
        "1 minute",
        "2 minutes",
        "1 hour",
        "24 hours",
    ]


# -- the queue


def _queue(jobs: int, *workers: WorkerState) -> QueueState:
    return QueueState(jobs, workers)


def _refusal(state: QueueState, let_in: int = 0, **settings: Any) -> Overloaded | None:
    try:
        check_queue(state, let_in, Settings(**settings))
    except Overloaded as problem:
        return problem
    return None


def test_the_wait_is_little_s_law_over_all_workers() -> None:
    """Two workers of 4 places, 2 s a reply: four replies a second."""
    workers = WorkerState(4, 4, 2.0), WorkerState(4, 4, 2.0)
    limits = {"queue_length": 1000, "queue_seconds": 10.0}
    assert _refusal(_queue(8 + 39, *workers), **limits) is None
    problem = _refusal(_queue(8 + 40, *workers), **limits)
    assert problem is not None
    assert problem.data["limit"] == "queue_seconds"
    assert problem.retry_after == 1.0  # at least
    later = _refusal(_queue(8 + 79, *workers), **limits)
    assert later is not None
    assert later.retry_after == 10.0  # forty more than allowed, at four a second
    slower = _refusal(_queue(4 + 79, workers[0]), **limits)
    assert slower is not None
    assert slower.retry_after == 30.0


def test_the_queue_has_a_length_also_without_workers() -> None:
    assert _refusal(_queue(4), queue_length=5) is None
    problem = _refusal(_queue(5), queue_length=5)
    assert problem is not None
    assert (problem.code, problem.data["limit"]) == ("busy", "queue_length")
    assert _refusal(_queue(3), let_in=2, queue_length=5) is not None
    idle = WorkerState(8, 0, 100.0)  # slow, but free
    assert _refusal(_queue(0, idle), queue_length=5, queue_seconds=1) is None


async def test_a_full_queue_is_busy_and_people_are_still_there(
    limited: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.server.reply_queue.LOOK_SECONDS", 0.0)
    async with running(limited(queue_length=1)) as server:
        async with chat_tab(server) as one, chat_tab(server) as two:
            assert (await _say(one, "m-1"))["type"] == "message.accepted"
            refused = await _say(two, "m-2")
            assert (refused["code"], refused["retry_after"]) == ("busy", 10.0)
            conversation_id = ConversationId(two.welcome["conversation_id"])
            assert await server.services.log.read(conversation_id) == []
            await two.send("handoff.request")
            await two.receive_until("status.changed")
            assert (await _say(two, "m-2"))["type"] == "message.accepted"
        assert _counted(server, "queue_length") == 1
        worker = ScriptedWorker(server.services, ["Hi"])
        async with worker.at_work(), chat_tab(server) as again:
            await until(lambda: worker.outcomes == ["written"])
            assert (await _say(again, "m-3"))["type"] == "message.accepted"
            await again.receive_until("reply.completed")


async def test_replies_that_wait_too_long_go_to_people(limited: Make) -> None:
    async with running(limited(queue_seconds=0.3)) as server, chat_tab(server) as tab:
        await _say(tab, "m-1")
        await tab.receive_until("status.changed", status="waiting")
        assert _counted(server, "queue_seconds") == 1


# -- workers


async def test_workers_are_alive_while_they_say_so(redis: Redis) -> None:
    presence = WorkerPresence(redis)
    state = WorkerState(16, 3, 1.5)
    await presence.tell("w-1", state)
    await presence.tell("w-2", WorkerState(16, 0, None))
    assert await presence.alive() == {"w-1": state, "w-2": WorkerState(16, 0, None)}
    await presence.leave("w-2")
    seconds, _ = await redis.time()
    text = str(await redis.hget(KEY, "w-1")).partition(" ")[2]
    await redis.hset(KEY, "w-1", f"{int(seconds) - ALIVE_SECONDS - 2:.0f} {text}")
    assert await presence.alive() == {}
    assert await redis.hgetall(KEY) == {}


# -- a reader that does not read


async def test_a_slow_reader_costs_no_memory_and_slows_nobody(
    limited: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops to read while others stream: what the server holds for it is bounded by the
    buffers of its connection, the others get everything, and it is dropped."""
    monkeypatch.setattr("chatbot.server.run.LINGER", 0.2)
    services = limited(slow_reader_seconds=1.0)
    worker = ScriptedWorker(services, ["x" * 5000] * 200)
    async with running(services) as server, worker.at_work():
        token = await server.token()
        near = socket.socket()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        near.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        near.setblocking(False)
        async with (
            connect(
                f"{server.socket_url}/v1/chat",
                sock=near,
                origin=ORIGIN,  # type: ignore[arg-type]
                compression=None,
                proxy=None,
                max_size=None,
                max_queue=1,
            ) as deaf,
            chat_tab(server, token) as tab,
        ):
            slow = Tab(deaf)
            await slow.send("hello", token=token)
            await slow.receive_until("welcome")
            transport = _transport(server, deaf.local_address[1])
            # the kernel would hold megabytes, and nobody would notice that nothing is read
            far = transport.get_extra_info("socket")
            far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            deaf.transport.pause_reading()
            held = [0]
            await tab.send("message.send", client_message_id="m-1", text="hi")
            while (await tab.receive())["type"] != "reply.completed":
                held.append(transport.get_write_buffer_size())
            assert tab.text(worker.replies[0].reply_id) == "x" * 1_000_000
            # at most the high-water mark and the one frame that went over it
            assert max(held) <= 64 * 1024 + 1_100_000
            await until(lambda: _counted(server, "slow_reader_seconds") == 1)
            # its connection is cut, and what was held for it is gone
            await until(lambda: transport.is_closing() and not transport.get_write_buffer_size())
            deaf.transport.resume_reading()


def _transport(server: Running, port: int) -> Any:
    """The server's side of the connection that comes from ``port``."""
    for connection in server.server.server_state.connections:
        transport: Any = connection.transport
        if transport.get_extra_info("peername")[1] == port:
            return transport
    raise AssertionError("no such connection")
