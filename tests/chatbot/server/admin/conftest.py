"""The admin API over real stores, called through ASGI."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from argon2 import PasswordHasher
from redis.asyncio import Redis

from chatbot.record.database import Database
from chatbot.record.tables import Staff
from chatbot.server.app import create_app
from chatbot.server.auth import signer_of
from chatbot.server.staff import ROLES
from chatbot.services import Services
from chatbot.training_runs import TrainingRuns
from tests.chatbot.server.room import make_services

Client = Callable[[str], httpx.AsyncClient]
PASSWORD = "correct horse battery"


@pytest.fixture(scope="session")
def password_hash() -> str:
    """Of PASSWORD; made once, since argon2 is slow on purpose."""
    return PasswordHasher().hash(PASSWORD)


@pytest.fixture
def services(
    redis: Redis, redis_url: str, database: Database, tmp_path: Path, password_hash: str
) -> Services:
    made = make_services(redis, database, tmp_path)
    made.versions.ensure_base(made.settings.base_model)
    with database.session() as session:
        for role in ROLES:
            session.add(Staff(username=role, password=password_hash, role=role, created_at=1))
    return replace(made, runs=TrainingRuns(database, redis_url))


@pytest.fixture
async def client(services: Services) -> AsyncIterator[Client]:
    """``client("reviewer")``: a client logged in as that role; ``client("")``: nobody."""
    transport = httpx.ASGITransport(create_app(services), raise_app_exceptions=False)
    async with AsyncExitStack() as stack:
        made: dict[str, httpx.AsyncClient] = {}
        for role in ("", *ROLES):
            http = httpx.AsyncClient(transport=transport, base_url="http://test/v1/admin")
            if role:
                token, _ = signer_of(services).issue_staff(role, 1)
                http.headers["Authorization"] = f"Bearer {token}"
            made[role] = await stack.enter_async_context(http)
        yield made.__getitem__


@pytest.fixture
def agent(client: Client) -> httpx.AsyncClient:
    return client("agent")


@pytest.fixture
def reviewer(client: Client) -> httpx.AsyncClient:
    return client("reviewer")


@pytest.fixture
def admin(client: Client) -> httpx.AsyncClient:
    return client("admin")
