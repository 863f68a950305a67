"""Which adapters the engine holds: verified and loaded once per version, dropped when idle."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from chatbot.engine.interface import Engine
from chatbot.versions import Versions
from chatbot.worker.lessons import Lessons

log = structlog.get_logger()

IDLE_SECONDS = 600.0  # an adapter that is not live and was not used this long is dropped


class Adapters:
    """The adapters of one engine. Names given to the engine are version ids."""

    def __init__(
        self,
        engine: Engine,
        versions: Versions,
        lessons: Lessons,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._engine = engine
        self._lessons = lessons
        self._versions = versions
        self._idle_seconds = idle_seconds
        self._loaded: dict[str, str | None] = {}  # version id -> adapter name, None for the base
        self._users: dict[str, int] = {}
        self._last_used: dict[str, float] = {}
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def use(self, version_id: str) -> AsyncIterator[str | None]:
        """The engine's adapter name of a version, None for the bare base model; it stays loaded
        while inside. The first use checks the hash of every file.

        Raises:
            NotFound: there is no such version.
            VersionCorrupt: a file differs from its manifest.
            AdapterInvalid: it does not fit the base model.
            StoreUnavailable: the registry cannot be asked.
        """
        self._users[version_id] = self._users.get(version_id, 0) + 1
        try:
            yield await self._name(version_id)
        finally:
            self._users[version_id] -= 1
            self._last_used[version_id] = asyncio.get_running_loop().time()

    async def _name(self, version_id: str) -> str | None:
        async with self._lock:  # a version is loaded once, also when many replies begin with it
            if version_id not in self._loaded:
                directory = await asyncio.to_thread(self._versions.verify, version_id)
                if directory is not None:
                    await self._engine.load_adapter(version_id, directory)
                    await self._lessons.version(version_id, directory)
                    log.info("worker.adapter_loaded", version=version_id)
                self._loaded[version_id] = None if directory is None else version_id
            return self._loaded[version_id]

    async def drop_idle(self, live: str) -> None:
        """Drop what is neither live nor in use, and was not used lately."""
        now = asyncio.get_running_loop().time()
        async with self._lock:
            for version_id in list(self._loaded):
                idle = now - self._last_used.get(version_id, now)
                if version_id == live or self._users.get(version_id) or idle < self._idle_seconds:
                    continue
                name = self._loaded.pop(version_id)
                self._users.pop(version_id, None)
                self._last_used.pop(version_id, None)
                if name is not None:
                    await self._engine.drop_adapter(name)
                    log.info("worker.adapter_dropped", version=version_id)
