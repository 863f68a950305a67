"""A worker's surroundings: real stores, a real registry, a scripted or a real engine."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from chatbot.conversation.archive import Archive
from chatbot.conversation.log import RedisLog
from chatbot.record.database import Database
from chatbot.services import Services
from chatbot.settings import Settings
from chatbot.training_runs import TrainingRuns
from chatbot.versions import Versions
from chatbot.worker.worker import Worker
from tests.chatbot.versions import make_version
from tests.chatbot.worker.scripted_engine import ScriptedEngine

LEASE = 0.5  # seconds
LONG = "A reply with é, 漢字 and 🙂 that is long enough to be cut anywhere. " * 3


def make_services(redis: Redis, database: Database, folder: Path, **options: Any) -> Services:
    given: dict[str, Any] = {"lease_seconds": LEASE, "reply_max_tokens": 1000}
    settings = Settings(data_dir=folder, **(given | options))
    archive = Archive(database)
    versions = Versions(database, folder / "artifacts", settings)
    versions.ensure_base(settings.base_model)
    return Services(
        settings=settings,
        redis=redis,
        log=RedisLog(redis, archive, settings.lease_seconds, settings.max_attempts),
        database=database,
        archive=archive,
        versions=versions,
        runs=TrainingRuns(database, "redis://127.0.0.1:1"),
        secret_key="k" * 32,
        admin_token="t",
    )


@dataclass
class Place:
    """Services, an engine, and workers on demand."""

    services: Services
    engine: ScriptedEngine
    artifacts: Path

    @property
    def log(self) -> RedisLog:
        log = self.services.log
        assert isinstance(log, RedisLog)
        return log

    def with_settings(self, **changes: Any) -> "Place":
        settings = self.services.settings.model_copy(update=changes)
        return replace(self, services=replace(self.services, settings=settings))

    def version(
        self, name: str, live: bool = True, replies: list[str] | None = None, **facts: Any
    ) -> Path:
        """A tuned version; its directory. ``facts``: more fields of its manifest."""
        directory = make_version(self.artifacts, name, replies=replies, **facts)
        self.services.versions.register(directory)
        if live:
            self.services.versions.promote(name, "ada", "a test", override=True)
        return directory

    @asynccontextmanager
    async def worker(self, **options: Any) -> AsyncIterator[Worker]:
        """A worker that runs while inside, and is stopped as by a signal."""
        stop = asyncio.Event()
        worker = Worker(self.services, self.engine, "w", **options)
        task = asyncio.create_task(worker.run(stop))
        try:
            yield worker
        finally:
            stop.set()
            async with asyncio.timeout(20):
                await task


@pytest.fixture(autouse=True)
def _quick_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop is seen between two waits for a job."""
    monkeypatch.setattr("chatbot.worker.worker.TAKE_SECONDS", 0.2)
    monkeypatch.setattr("chatbot.worker.completions.TAKE_SECONDS", 0.2)


@pytest.fixture
def place(redis: Redis, database: Database, tmp_path: Path) -> Place:
    return Place(
        make_services(redis, database, tmp_path),
        ScriptedEngine(lambda prompt: LONG),
        tmp_path / "artifacts",
    )
