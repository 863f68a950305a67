"""Fixtures of the server's tests."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from redis.asyncio import Redis

from chatbot.record.database import Database
from chatbot.server.staff import create_staff
from chatbot.services import Services
from tests.chatbot.server.room import Running, make_services, running


@pytest.fixture(autouse=True)
def _plain_logs() -> Iterator[None]:
    """Log lines on standard output, with plain tracebacks."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(),
        ]
    )
    yield
    structlog.reset_defaults()


@pytest.fixture
def services(redis: Redis, database: Database, tmp_path: Path) -> Services:
    return make_services(redis, database, tmp_path)


@pytest.fixture
async def server(services: Services) -> AsyncIterator[Running]:
    async with running(services) as started:
        yield started


@pytest.fixture
def anna(services: Services) -> str:
    """A desk token of the agent anna."""
    return staff_token(services, "anna")


@pytest.fixture
def ben(services: Services) -> str:
    """A desk token of the agent ben."""
    return staff_token(services, "ben")


def staff_token(services: Services, name: str) -> str:
    from chatbot.server.auth import signer_of

    create_staff(services.database, "test", name, "a long password", "agent")
    return signer_of(services).issue_staff(name, 1)[0]
