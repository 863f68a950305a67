"""Logs for the contract suite: the fake and the real one must behave the same."""

import itertools
from collections.abc import Callable

import pytest
from redis.asyncio import Redis

from chatbot.conversation.archive import Archive
from chatbot.conversation.events import ConversationId, VisitorId
from chatbot.conversation.interface import ConversationLog
from chatbot.conversation.log import RedisLog
from chatbot.record.database import Database
from tests.chatbot.conversation.memory_log import MemoryLog

LEASE = 0.3  # seconds
ATTEMPTS = 3


@pytest.fixture(params=["memory", "redis"])
def log(request: pytest.FixtureRequest, redis_url: str) -> ConversationLog:
    """An empty log. ``redis_url`` is named: who uses this is then known to share the store."""
    if request.param == "memory":
        return MemoryLog(LEASE, ATTEMPTS)
    return RedisLog(request.getfixturevalue("redis"), None, LEASE, ATTEMPTS)


@pytest.fixture
def redis_log(redis: Redis) -> RedisLog:
    """The real one, without a record."""
    return RedisLog(redis, None, LEASE, ATTEMPTS)


@pytest.fixture
def archive(database: Database) -> Archive:
    return Archive(database)


@pytest.fixture
def recorded_log(redis: Redis, archive: Archive) -> RedisLog:
    """The real one with a record."""
    return RedisLog(redis, archive, LEASE, ATTEMPTS)


@pytest.fixture
def new_id() -> Callable[[], ConversationId]:
    counter = itertools.count(1)
    return lambda: ConversationId(f"c{next(counter)}")


VISITOR = VisitorId("v1")
