"""What scenarios share."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.faults.check import Findings, check
from bench.faults.place import Place
from bench.faults.process import Nursery
from bench.faults.stores import Cluster, Store, redis_binary, valkey_binary
from bench.faults.visitors import Visitor, crowd

StoreKind = Literal["valkey", "redis", "cluster"]
PATIENCE = 90.0  # seconds after which a question counts as never answered


@dataclass
class Setting:
    """Where and how large. ``scale`` 1.0 is what a test runs."""

    folder: Path
    nursery: Nursery
    store: StoreKind = "valkey"
    scale: float = 1.0
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    progress: Callable[[float], None] = lambda share: None

    def times(self, small: int) -> int:
        return max(1, round(small * self.scale))

    def new_store(self, **config: str) -> Store | Cluster:
        """Raises RuntimeError when the machine has no Redis to start."""
        folder = self.folder / "store"
        if self.store == "valkey":
            return Store(valkey_binary(), folder, **config)
        found = redis_binary()
        if found is None:
            raise RuntimeError("there is no redis-server here: install Debian's redis-server")
        if self.store == "redis":
            return Store(found, folder, **config)
        return Cluster(found, folder, **config)


@dataclass
class Outcome:
    """What a scenario did and what was found. ``more``: its own measurements."""

    faults: Counter[str] = field(default_factory=Counter)
    found: Findings = field(default_factory=Findings)
    unanswered: int = 0
    ended: list[str] = field(default_factory=list)  # processes that ended by themselves
    more: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return self.found.clean and not self.unanswered and not self.ended

    def as_dict(self) -> dict[str, Any]:
        return {
            "faults": sum(self.faults.values()),
            "faults_by_kind": dict(self.faults),
            **asdict(self.found),
            "unanswered": self.unanswered,
            "ended": self.ended,
            "seconds": round(self.seconds, 1),
            **self.more,
        }


@asynccontextmanager
async def opened(setting: Setting, visitors: int, **place: Any) -> AsyncIterator["Running"]:
    """A place at work with visitors in it; at the end everything is compared."""
    config = place.pop("config", {})
    began = time.monotonic()
    store = place.pop("store", None) or setting.new_store(**config)
    outcome = Outcome()
    async with (
        Place(setting.folder, store, setting.nursery, **place).running() as made,
        crowd(made, visitors) as people,
    ):
        running = Running(setting, made, people, outcome)
        yield running
        outcome.ended = [process.name for process in made.processes.values() if not process.runs]
        async with made.services() as services:
            sealed = not made.real_model
            found = await check(services.log, services.archive, people, sealed=sealed)
            outcome.found.add(found)
        outcome.seconds = time.monotonic() - began


@dataclass
class Running:
    """A scenario's stage."""

    setting: Setting
    place: Place
    visitors: list[Visitor]
    outcome: Outcome

    async def everybody_asks(self, text: str, seconds: float = PATIENCE) -> None:
        """One question each, answered."""
        answered = await asyncio.gather(*(v.ask(text, seconds) for v in self.visitors))
        self.outcome.unanswered += answered.count(False)
        for visitor in self.visitors:
            visitor.rest()

    @asynccontextmanager
    async def talking(self) -> AsyncIterator[None]:
        """Everybody asks one question after another while inside; questions that were asked at
        the end are answered before it is left."""
        over = asyncio.Event()

        async def talk(visitor: Visitor) -> None:
            number = 0
            while not over.is_set():
                number += 1
                answered = await visitor.ask(f"{visitor.name} asks {number}", PATIENCE)
                self.outcome.unanswered += not answered
                visitor.rest()

        talks = [asyncio.create_task(talk(visitor)) for visitor in self.visitors]
        try:
            yield
        finally:
            over.set()
            await asyncio.gather(*talks)

    async def pause(self, least: float, most: float) -> None:
        await asyncio.sleep(self.setting.rng.uniform(least, most))

    async def rounds(self, count: int, step: Callable[[int], Awaitable[None]]) -> None:
        """Do ``step`` so many times, with progress."""
        for number in range(count):
            await step(number)
            self.setting.progress((number + 1) / count)

    async def kill(self, name: str) -> None:
        """SIGKILL a process and start it again."""
        self.outcome.faults[name.partition("-")[0]] += 1
        process = self.place.processes[name]
        await asyncio.to_thread(process.kill)
        with contextlib.suppress(TimeoutError):
            await self.place.restart(name)

    async def kill_store(self) -> None:
        """SIGKILL the store, or a random node of it, and start it again."""
        self.outcome.faults["store"] += 1
        store = self.place.store
        node = self.setting.rng.choice(store.nodes) if isinstance(store, Cluster) else store
        await asyncio.to_thread(node.restart)
