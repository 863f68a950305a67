"""The acknowledgement that waits for the disk, and what a power cut takes without it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from bench.faults.stores import Cluster, Store, valkey_binary
from chatbot.bootstrap import open_services
from chatbot.conversation import store as store_module
from chatbot.conversation.archive import Archive
from chatbot.conversation.log import RedisLog
from chatbot.conversation.store import always_synced
from chatbot.errors import SettingsError, StoreUnavailable
from chatbot.redis_client import open_redis
from chatbot.settings import Settings
from tests.chatbot.conversation.conftest import ATTEMPTS, LEASE, VISITOR
from tests.chatbot.conversation.steps import begin, shape
from tests.conftest import redis_server


@pytest.fixture(params=["valkey", "cluster of valkeys"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store | Cluster]:
    own: Store | Cluster
    if request.param == "valkey":
        own = Store(valkey_binary(), tmp_path / "store")
    else:
        own = Cluster(valkey_binary(), tmp_path / "cluster")
    own.start()
    yield own
    own.kill()


def _servers(store: Store | Cluster) -> list[Store]:
    return store.nodes if isinstance(store, Cluster) else [store]


@pytest.fixture
async def client(store: Store | Cluster) -> AsyncIterator[Redis]:
    opened = open_redis(store.url)
    yield opened
    await opened.aclose()


async def _write(log: RedisLog, text: str) -> bool:
    """Whether it was there already."""
    accepted = await log.append_message(
        await begin(log), role="visitor", text=text, client_message_id=text, author=VISITOR
    )
    return accepted.duplicate


async def test_what_is_not_on_the_disk_is_not_acknowledged(
    store: Store | Cluster, client: Redis, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RedisLog(client, archive, LEASE, ATTEMPTS, wait_for_disk=True)
    assert not await always_synced(client)
    assert not await _write(log, "one")
    synced = [server.stop_syncing() for server in _servers(store)]
    monkeypatch.setattr(store_module, "DISK_MS", 300)
    for _ in range(2):  # nor when the second try finds it in the log
        with pytest.raises(StoreUnavailable, match="did not write to its disk"):
            await _write(log, "two")
    quick = RedisLog(client, archive, LEASE, ATTEMPTS)
    assert not await _write(quick, "three")  # acknowledged all the same, and lost now:
    for server, length in zip(_servers(store), synced, strict=True):
        server.cut_power(length)
    for server in _servers(store):
        await asyncio.to_thread(server.start)
    monkeypatch.setattr(store_module, "DISK_MS", 3000)
    async with asyncio.timeout(30):
        while True:  # the client's retry
            try:
                assert not await _write(log, "two")
                break
            except StoreUnavailable:
                await asyncio.sleep(0.05)
    assert await _write(log, "two")  # again, and now it is there
    assert await shape(log, await begin(log)) == ["visitor: one", "visitor: two"]


async def test_a_store_that_cannot_wait_is_refused_at_the_start(tmp_path: Path) -> None:
    """Redis before 7.2 has no WAITAOF; with `appendfsync always` it needs none."""
    own = Store(redis_server(), tmp_path / "store")
    own.start()
    try:
        with own.client() as admin:
            has_it = bool(admin.execute_command("COMMAND INFO", "WAITAOF"))
            old = not has_it or "waitaof" not in str(admin.execute_command("COMMAND LIST")).lower()
            settings = Settings(data_dir=tmp_path / "data", redis_url=own.url, acknowledge="disk")
            if old:
                with pytest.raises(SettingsError, match=r"WAITAOF.*appendfsync always"):
                    async with open_services(settings):
                        pass
                admin.config_set("appendfsync", "always")
            async with open_services(settings) as services:
                assert isinstance(services.log, RedisLog)
                assert not await _write(services.log, "one")
            admin.config_set("appendonly", "no")
            with pytest.raises(SettingsError, match="FRONTDESK_ACKNOWLEDGE=disk"):
                async with open_services(settings):
                    pass
    finally:
        own.kill()
