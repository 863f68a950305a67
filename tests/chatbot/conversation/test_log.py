"""What only the real log has: keys, scripts, errors, several processes, keys that expire."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis import exceptions
from redis.asyncio import Redis

from chatbot.conversation import keys
from chatbot.conversation.archive import Archive, Archiver
from chatbot.conversation.events import ConversationId
from chatbot.conversation.log import RedisLog
from chatbot.conversation.store import LUA, map_store_error
from chatbot.errors import InputError, StorageFull, StoreUnavailable
from tests.chatbot.conversation.conftest import ATTEMPTS, LEASE
from tests.chatbot.conversation.own_store import OwnStore
from tests.chatbot.conversation.steps import (
    VISITOR,
    answer,
    ask,
    begin,
    events_of,
    no_job,
    shape,
    streaming,
    take,
    until,
)

# -- keys


def test_a_conversation_and_its_lane_share_a_slot() -> None:
    for number in range(200):
        cid = ConversationId(f"c{number}")
        found = keys.keys_of(cid).as_list()
        tags = {re.search(r"\{(\d\d)\}", key).group(1) for key in found}  # type: ignore[union-attr]
        assert tags == {f"{keys.lane_of(cid):02d}"}
        assert len(set(found)) == len(found)
    assert {keys.lane_of(ConversationId(f"c{n}")) for n in range(2000)} == set(range(keys.LANES))


@pytest.mark.parametrize("bad", ["", "a b", "a}b{c", "x" * 65, "a\nb", "é"])
def test_an_id_cannot_leave_its_lane(bad: str) -> None:
    with pytest.raises(InputError):
        keys.keys_of(ConversationId(bad))


def test_the_documented_keys_are_the_keys() -> None:
    text = (Path(__file__).parents[3] / "docs" / "architecture.md").read_text()
    templates = (
        keys.LOG, keys.HEAD, keys.LIVE, keys.IDS, keys.JOBS, keys.OPEN, keys.DIRTY, keys.NOTIFY,
        keys.GONE, keys.TALK, keys.DRAFTS,
    )  # fmt: skip
    for template in templates:
        assert f"| `{template.format(lane=7, cid='<cid>')}` |" in text


async def test_everything_is_stored_under_the_documented_keys(
    redis: Redis, redis_log: RedisLog
) -> None:
    cid = await begin(redis_log)
    await ask(redis_log, cid)
    await streaming(redis_log)
    names = keys.keys_of(cid)
    streams = set(keys.lane_keys(keys.JOBS))  # made for the consumer groups
    assert set(await redis.keys("*")) - streams == set(names.as_list()) - {
        names.jobs,
        names.notify,  # a channel
        names.gone,  # nothing was erased
        names.talk,  # no call
        names.drafts,  # no agent
    }
    assert [entry[0] for entry in await redis.xrange(names.log)] == ["1-0"]
    (entry,) = await redis.xrange(names.log)
    assert set(json.loads(entry[1]["e"])) == {"type", "at", "data"}


async def test_time_is_the_stores(redis: Redis, redis_log: RedisLog) -> None:
    before = (await redis.time())[0]
    cid = await begin(redis_log)
    await ask(redis_log, cid)
    (event,) = await events_of(redis_log, cid)
    assert before * 1000 <= event.at <= ((await redis.time())[0] + 1) * 1000


# -- scripts


def test_only_strings_go_through_cjson() -> None:
    for path in LUA.glob("*.lua"):
        source = path.read_text()
        assert "cjson.decode" not in source
        assert source.count("cjson.encode") == (1 if path.stem == "common" else 0)


async def test_scripts_that_the_store_forgot_are_loaded_again(
    redis: Redis, redis_log: RedisLog
) -> None:
    cid = await begin(redis_log)
    await redis.script_flush()
    await ask(redis_log, cid)
    await redis.script_flush()
    await answer(redis_log)


async def test_clients_that_do_not_decode(redis_url: str, redis: Redis) -> None:
    for protocol in (2, 3):
        client = Redis.from_url(redis_url, protocol=protocol)
        log = RedisLog(client, None, LEASE, ATTEMPTS)
        cid = await begin(log, f"c{protocol}")
        changes = log.changes()
        assert await anext(changes) is None
        waiting = asyncio.create_task(log.take_job("w", 5.0))
        await asyncio.sleep(0.05)  # so that the job comes by the blocking read
        await ask(log, cid, "é 🙂")
        assert await anext(changes) == cid
        lease = await waiting
        assert lease is not None
        await log.start_reply(lease, "v")
        await log.append_delta(lease, 0, "ß")
        assert await log.stop_reply(cid, lease.reply_id)
        assert await shape(log, cid) == ["visitor: é 🙂", "bot (stopped): ß"]
        assert cid in [head.conversation_id for head in await log.open_conversations()]
        await changes.aclose()  # type: ignore[attr-defined]
        await client.aclose()


# -- errors


FULL = [
    exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
    exceptions.ResponseError(
        "OOM command not allowed when used memory > 'maxmemory'. script: abc, on @user_script:3."
    ),
    exceptions.ResponseError(
        "MISCONF Valkey is configured to save RDB snapshots, but it's currently unable to persist"
    ),
    exceptions.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
]
AWAY = [
    exceptions.ConnectionError("Error 111 connecting to redis:6379. Connection refused."),
    exceptions.TimeoutError("Timeout reading from redis:6379"),
    exceptions.BusyLoadingError("LOADING Redis is loading the dataset in memory"),
    exceptions.ReadOnlyError("You can't write against a read only replica."),
    exceptions.MasterDownError("MASTERDOWN Link with MASTER is down"),
    exceptions.ClusterDownError("CLUSTERDOWN Hash slot not served"),
    exceptions.MaxConnectionsError("Too many connections"),
    exceptions.AuthenticationError("WRONGPASS invalid username-password pair"),
    exceptions.NoPermissionError("NOPERM this user has no permissions"),
    exceptions.TryAgainError("TRYAGAIN multiple keys request during rehashing of slot"),
    exceptions.RedisClusterException("no node"),
    exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."),
    OSError(104, "Connection reset by peer"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_no_room_is_told_as_no_room(error: Exception) -> None:
    assert type(map_store_error(error)) is StorageFull


@pytest.mark.parametrize("error", AWAY, ids=lambda error: type(error).__name__)
def test_everything_else_is_told_as_away(error: Exception) -> None:
    mapped = map_store_error(error)
    assert type(mapped) is StoreUnavailable
    assert "6379" not in str(mapped)  # addresses are not for visitors


def test_no_error_of_the_client_is_left_out() -> None:
    """Everything that redis-py can raise for a call is a RedisError or a RedisClusterException,
    which store_errors catches."""
    outside = [
        name
        for name, value in vars(exceptions).items()
        if isinstance(value, type)
        and issubclass(value, Exception)
        and not issubclass(value, exceptions.RedisError | exceptions.RedisClusterException)
    ]
    assert set(outside) <= {"ChildDeadlockedError", "IncorrectPolicyType"}  # the caller's bugs


@pytest.fixture
async def small_store(tmp_path: Path) -> AsyncIterator[Redis]:
    own = OwnStore(tmp_path, maxmemory="8mb")
    await asyncio.to_thread(own.start)
    client = Redis.from_url(own.url, decode_responses=True)
    yield client
    await client.aclose()
    await asyncio.to_thread(own.kill)


async def test_a_full_store_refuses_and_loses_nothing(small_store: Redis) -> None:
    log = RedisLog(small_store, None, LEASE, ATTEMPTS)
    cid = await begin(log)
    texts: list[str] = []

    async def fill() -> None:
        for number in range(200):
            text = f"{number} " + "x" * 100_000
            await ask(log, cid, text)
            texts.append(text)

    with pytest.raises(StorageFull):
        await fill()
    assert texts
    assert [event.data["text"] for event in await events_of(log, cid)] == texts
    await small_store.config_set("maxmemory", "0")
    assert await ask(log, cid) == len(texts) + 1


# -- several processes


WRITER = """
import asyncio, sys
from redis.asyncio import Redis
from chatbot.conversation.events import ConversationId, VisitorId
from chatbot.conversation.log import RedisLog

async def main(url, name, count):
    redis = Redis.from_url(url)
    log = RedisLog(redis, None, 1.0, 3)
    for number in range(count):
        await log.append_message(
            ConversationId("c1"), role="visitor", text=f"{name} {number}",
            client_message_id=f"{name}-{number}", author="v1")
        await log.append_message(
            ConversationId("c1"), role="visitor", text="both", client_message_id=f"both-{number}",
            author="v1")
    await redis.aclose()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def test_two_processes_write_one_log(redis_url: str, redis_log: RedisLog) -> None:
    cid = await begin(redis_log)
    count = 40
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, redis_url, name, str(count), stderr=subprocess.PIPE
        )
        for name in ("left", "right")
    ]
    for process in processes:
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
    events = await events_of(redis_log, cid)  # contiguous
    texts = [event.data["text"] for event in events]
    assert len(texts) == 3 * count
    for name in ("left", "right"):  # each writer's own order is kept, nothing doubled
        assert [t for t in texts if t.startswith(name)] == [f"{name} {n}" for n in range(count)]
    assert texts.count("both") == count
    await take(redis_log)
    await no_job(redis_log)


async def test_many_workers_take_each_job_once(redis: Redis) -> None:
    logs = [RedisLog(redis, None, 5.0, ATTEMPTS) for _ in range(5)]
    expected = set()
    for number in range(30):
        cid = await begin(logs[0], f"c{number}")
        await ask(logs[0], cid)
        expected.add(cid)
    taken: list[str] = []

    async def work(log: RedisLog) -> None:
        while (lease := await log.take_job("w", 0.2)) is not None:
            taken.append(lease.conversation_id)

    await asyncio.gather(*(work(log) for log in logs))
    assert sorted(taken) == sorted(expected)


async def test_jobs_that_come_in_the_same_instant_are_given_back(redis: Redis) -> None:
    """A blocked read may be answered for several lanes at once; one taker keeps one job."""
    log = RedisLog(redis, None, 5.0, ATTEMPTS)
    names = [await begin(log, f"c{number}") for number in range(12)]
    await no_job(log)  # groups exist
    for cid in names:
        await ask(log, cid)
    came = await log._jobs.wait(0.5)
    assert len(came) == 12
    for job in came[1:]:
        await log._give_back(job)
    taken = {(await take(log)).conversation_id for _ in range(11)}
    assert taken == set(names) - {came[0].conversation_id}
    await no_job(log)


async def test_a_waiting_read_does_not_hold_up_others(redis_url: str, redis: Redis) -> None:
    log = RedisLog(redis, None, LEASE, ATTEMPTS)
    waiting = [asyncio.create_task(log.take_job("w", 1.5)) for _ in range(4)]
    await asyncio.sleep(0.05)
    cid = await begin(log)
    async with asyncio.timeout(0.5):
        await log.append_note(cid, text="n", author="a", client_message_id="n")
        await log.catch_up(cid, None, None)
    assert await asyncio.gather(*waiting) == [None] * 4


async def test_a_job_without_a_conversation_is_dropped(redis: Redis, redis_log: RedisLog) -> None:
    cid = await begin(redis_log)
    await ask(redis_log, cid)
    names = keys.keys_of(cid)
    await redis.delete(names.head, names.log)
    await no_job(redis_log)
    assert await redis.xlen(names.jobs) == 0


async def test_nothing_is_left_of_jobs_that_are_done(redis: Redis, redis_log: RedisLog) -> None:
    cid = await begin(redis_log)
    for _ in range(3):
        await ask(redis_log, cid)
        await answer(redis_log)
    names = keys.keys_of(cid)
    assert await redis.xlen(names.jobs) == 0
    assert (await redis.xpending(names.jobs, keys.GROUP))["pending"] == 0
    assert not await redis.exists(names.live)


# -- what goes away by itself, and what never does


async def test_what_is_not_recorded_never_expires(redis: Redis, redis_log: RedisLog) -> None:
    cid = await begin(redis_log)
    await ask(redis_log, cid)
    await redis_log.change_status(cid, "closed", reason="done", actor="anna")
    names = keys.keys_of(cid)
    for name in (names.head, names.log, names.ids):
        assert await redis.ttl(name) == -1


async def test_closed_and_recorded_conversations_go_after_a_while(
    redis: Redis, recorded_log: RedisLog, archive: Archive
) -> None:
    log = recorded_log
    cid = await begin(log)
    await ask(log, cid)
    archiver = Archiver(log, archive)
    await archiver.copy_once()
    names = keys.keys_of(cid)
    assert await redis.ttl(names.log) == -1  # recorded, but open
    await log.change_status(cid, "closed", reason="done", actor="anna")
    assert await redis.ttl(names.log) == -1  # closed, but not recorded
    await archiver.copy_once()
    for name in (names.head, names.log, names.ids):
        assert 29 * 86400 < await redis.ttl(name) <= 30 * 86400
    await ask(log, cid, "one more")
    for name in (names.head, names.log, names.ids):
        assert await redis.ttl(name) == -1


async def test_empty_conversations_and_playgrounds_go_soon(
    redis: Redis, redis_log: RedisLog
) -> None:
    cid = await begin(redis_log)
    assert 0 < await redis.ttl(keys.keys_of(cid).head) <= 7 * 86400
    await ask(redis_log, cid)
    assert await redis.ttl(keys.keys_of(cid).head) == -1
    play = ConversationId("p")
    await redis_log.create(play, site="", visitor=VISITOR, kind="playground", pinned_version="v")
    await ask(redis_log, play)
    names = keys.keys_of(play)
    for name in (names.head, names.log, names.ids):
        assert 0 < await redis.ttl(name) <= 86400


# -- wake-ups


async def test_a_slow_listener_gets_each_conversation_once(redis_log: RedisLog) -> None:
    changes = redis_log.changes()
    assert await anext(changes) is None
    names = [await begin(redis_log, f"c{number}") for number in range(3)]
    for _ in range(20):
        for cid in names:
            await ask(redis_log, cid)
    seen: list[Any] = []

    async def all_seen() -> bool:
        seen.append(await anext(changes))
        return set(seen) == set(names)

    await until(all_seen)
    assert len(seen) < 30  # of 60 notifications
    await changes.aclose()  # type: ignore[attr-defined]


async def test_a_quiet_subscription_stays(
    redis_url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pings of ours and of the client keep it; it is not mistaken for dead."""
    monkeypatch.setattr("chatbot.conversation.changes.SILENCE", 0.05)
    client = Redis.from_url(redis_url, decode_responses=True, health_check_interval=1)
    log = RedisLog(client, None, LEASE, ATTEMPTS)
    changes = log.changes()
    assert await anext(changes) is None
    waiting = asyncio.ensure_future(anext(changes))
    _, pending = await asyncio.wait({waiting}, timeout=1.3)
    assert pending  # a reconnection would have told None
    cid = await begin(log)
    await ask(log, cid)
    assert await waiting == cid
    await changes.aclose()  # type: ignore[attr-defined]
    await client.aclose()
