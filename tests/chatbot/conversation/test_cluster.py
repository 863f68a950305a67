"""What is different on a Redis Cluster: lanes live on several nodes, and one of them may be away.
That a log behaves the same there is the contract suite's to say."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from bench.faults.stores import Cluster
from chatbot.bootstrap import open_services, resolve_queue_url
from chatbot.conversation import keys
from chatbot.conversation.archive import Archive, Archiver
from chatbot.conversation.events import ConversationId
from chatbot.conversation.log import RedisLog
from chatbot.errors import SettingsError, StoreUnavailable
from chatbot.redis_client import open_redis
from chatbot.settings import Settings
from tests.chatbot.conversation.steps import ask, begin, no_job, shape, take, until
from tests.conftest import redis_server

SECONDS = 30.0


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose nodes may be killed."""
    cluster = Cluster(redis_server(), tmp_path_factory.mktemp("own"))
    cluster.start()
    yield cluster
    cluster.kill()


@pytest.fixture
async def client(own: Cluster) -> AsyncIterator[Redis]:
    opened = open_redis(own.url)
    await opened.flushall(target_nodes="primaries")
    yield opened
    await opened.aclose()


@pytest.fixture
def log(client: Redis, archive: Archive) -> RedisLog:
    return RedisLog(client, archive, lease_seconds=60.0, max_attempts=3)


async def _one_per_node(client: Redis, own: Cluster) -> dict[int, ConversationId]:
    """Index of a node -> a conversation that it holds."""
    await client.initialize()
    ports = [node.port for node in own.nodes]
    found: dict[int, ConversationId] = {}
    for number in range(200):
        name = ConversationId(f"c{number}")
        node = client.get_node_from_key(keys.keys_of(name).head)
        found.setdefault(ports.index(node.port), name)
    assert len(found) == len(own.nodes)
    return found


async def test_jobs_and_wake_ups_come_from_every_node(
    client: Redis, own: Cluster, log: RedisLog
) -> None:
    names = await _one_per_node(client, own)
    changes = log.changes()
    assert await asyncio.wait_for(anext(changes), SECONDS) is None
    for name in names.values():
        await begin(log, name)
        await ask(log, name)
        assert await asyncio.wait_for(_told(changes, name), SECONDS)
    taken = {(await take(log)).conversation_id for _ in names}
    assert taken == set(names.values())
    await no_job(log)
    await changes.aclose()  # type: ignore[attr-defined]


async def _told(changes: AsyncIterator[ConversationId | None], name: ConversationId | None) -> bool:
    async for told in changes:
        if told == name:
            return True
    return False


async def test_a_node_that_is_away_and_comes_back(
    client: Redis, own: Cluster, log: RedisLog
) -> None:
    names = await _one_per_node(client, own)
    for name in names.values():
        await begin(log, name)
        await ask(log, name, "before")
    changes = log.changes()
    assert await asyncio.wait_for(anext(changes), SECONDS) is None
    await asyncio.to_thread(own.nodes[1].kill)
    with pytest.raises(StoreUnavailable):
        await ask(log, names[1], "during")
    await asyncio.to_thread(own.nodes[1].start)

    async def works() -> bool:
        try:
            await log.append_message(
                names[1], role="visitor", text="during", client_message_id="m-2", author="v"
            )
        except StoreUnavailable:
            return False
        return True

    await until(works, SECONDS)
    assert await shape(log, names[1]) == ["visitor: before", "visitor: during"]
    assert await asyncio.wait_for(_told(changes, None), SECONDS)
    await ask(log, names[1], "after")
    assert await asyncio.wait_for(_told(changes, names[1]), SECONDS)
    await changes.aclose()  # type: ignore[attr-defined]


async def test_the_desk_list_of_a_node_that_lost_everything_comes_back(
    client: Redis, own: Cluster, log: RedisLog, archive: Archive
) -> None:
    names = await _one_per_node(client, own)
    for name in names.values():
        await begin(log, name)
        await ask(log, name)
    assert await log.restore_open() == 0
    await Archiver(log, archive).copy_once()
    own.nodes[2].flush()
    assert {head.conversation_id for head in await log.open_conversations()} == {
        names[0],
        names[1],
    }
    assert await log.restore_open() == 1  # the other nodes' were not touched
    assert len(await log.open_conversations()) == 3
    assert await shape(log, names[2]) == ["visitor: hello"]


async def test_the_product_opens_a_cluster(own: Cluster, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, redis_url=own.url)
    async with open_services(settings) as services:
        assert await begin(services.log)
        with pytest.raises(StoreUnavailable, match="FRONTDESK_QUEUE_REDIS_URL"):
            await asyncio.to_thread(services.runs.create, "r", "ada", {})
    with pytest.raises(SettingsError, match="FRONTDESK_QUEUE_REDIS_URL"):
        resolve_queue_url(settings)
    beside = settings.model_copy(update={"queue_redis_url": "redis://queue:6379/0"})
    assert resolve_queue_url(beside) == "redis://queue:6379/0"


def test_addresses_of_clusters() -> None:
    opened = open_redis("rediss+cluster://me:hush@one:7001,two:7002,three")
    nodes = [(node.host, node.port) for node in opened.startup_nodes]
    assert nodes == [("one", 7001), ("two", 7002), ("three", 6379)]
    assert opened.connection_kwargs["password"] == "hush"
    assert "ssl_cert_reqs" in opened.connection_kwargs
    plain = open_redis("redis+cluster://one")
    assert "ssl_cert_reqs" not in plain.connection_kwargs
    with pytest.raises(SettingsError, match="one database"):
        open_redis("redis+cluster://one:7001/3")
