"""A whole Frontdesk of real processes on loopback: servers, workers, archiver and trainer over a
store and a record of their own. Each can be killed, stopped for a while and started again."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.faults.process import Nursery, alive
from bench.faults.stores import Cluster, Store, free_port
from chatbot.bootstrap import kept_secret, open_services
from chatbot.server.auth import TokenSigner
from chatbot.services import Services
from chatbot.settings import Settings

START_SECONDS = 120.0
LEASE_SECONDS = 2.0


@dataclass(slots=True)
class Process:
    """A process by its name, e.g. ``worker-2``, and how to start it."""

    name: str
    role: str
    options: dict[str, Any]
    environ: dict[str, str]
    log: Path
    nursery: Nursery
    pid: int = 0  # 0: does not run

    def start(self) -> None:
        self.log.touch()
        self.pid = self.nursery.spawn(self.role, self.options, self.environ, self.log)

    @property
    def runs(self) -> bool:
        return self.pid != 0 and alive(self.pid)

    def signal(self, number: signal.Signals) -> None:
        if self.runs:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.signal(signal.SIGKILL)
        self._gone(10.0)
        self.pid = 0

    def stop(self, seconds: float = 30.0) -> None:
        """SIGTERM, then SIGKILL when it does not end."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if not self._gone(seconds):
            self.kill()
        self.pid = 0

    def _gone(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.runs and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self.runs


@dataclass
class Place:
    """See the module's text. ``words`` and ``seconds`` set the pace of the replies."""

    folder: Path
    store: Store | Cluster
    nursery: Nursery
    servers: int = 2
    workers: int = 2
    words: int = 20
    seconds: float = 0.05
    archiver: bool = True
    trainer: bool = False
    clocks: dict[str, float] = field(default_factory=dict)  # process name -> seconds ahead
    real_model: bool = False
    settings: dict[str, str] = field(default_factory=dict)  # more FRONTDESK_ variables
    processes: dict[str, Process] = field(default_factory=dict)
    ports: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.data_dir = self.folder / "data"
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.ports = [free_port() for _ in range(self.servers)]
        for number, port in enumerate(self.ports, 1):
            self._add(f"server-{number}", "server", port=port)
        for number in range(1, self.workers + 1):
            self._add(f"worker-{number}", "worker")
        if self.archiver:
            self._add("archiver", "archiver")
        if self.trainer:
            self._add("trainer", "trainer")

    def variables(self, port: int = 0) -> dict[str, str]:
        """The settings of a process."""
        return {
            "FRONTDESK_DATA_DIR": str(self.data_dir),
            "FRONTDESK_REDIS_URL": self.store.url,
            "FRONTDESK_PORT": str(port),
            "FRONTDESK_LEASE_SECONDS": str(LEASE_SECONDS),
            "FRONTDESK_MAX_ATTEMPTS": "50",  # workers are killed more often than they would die
            "FRONTDESK_MESSAGES_PER_MINUTE": "6000",
            # everybody comes from one address here, and may be kept waiting by what is broken
            "FRONTDESK_MESSAGES_PER_MINUTE_PER_ADDRESS": "1000000",
            "FRONTDESK_FRAMES_PER_MINUTE_PER_ADDRESS": "10000000",
            "FRONTDESK_VISITORS_PER_MINUTE": "1000000",
            "FRONTDESK_CONVERSATIONS_PER_ADDRESS": "1000000",
            "FRONTDESK_SOCKETS_PER_ADDRESS": "100000",
            "FRONTDESK_TOKENS_PER_VISITOR": "1000000000",
            "FRONTDESK_QUEUE_SECONDS": "3600",
            "FRONTDESK_REPLY_SECONDS": "3600",
            "FRONTDESK_REPLY_MAX_TOKENS": "4000",
            "FRONTDESK_MAX_RUNNING": "256",
            **self.settings,
        }

    def _add(self, name: str, role: str, port: int = 0) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("FRONTDESK_")}
        options = {
            "words": self.words,
            "seconds": self.seconds,
            "clock": self.clocks.get(name, 0.0),
            "real": self.real_model,
        }
        environ = kept | self.variables(port)
        log = self.folder / f"{name}.log"
        self.processes[name] = Process(name, role, options, environ, log, self.nursery)

    def opened_settings(self) -> Settings:
        """The settings of this process, which looks into the stores."""
        values = {
            name.removeprefix("FRONTDESK_").lower(): value
            for name, value in self.variables().items()
        }
        return Settings(**values)  # type: ignore[arg-type]

    @asynccontextmanager
    async def services(self) -> AsyncIterator[Services]:
        """The same stores that the processes have."""
        async with open_services(self.opened_settings()) as opened:
            yield opened

    def token(self, visitor: str) -> str:
        """A visitor's token, signed as a server would."""
        signer = TokenSigner(kept_secret(self.data_dir, "secret-key"))
        return signer.issue_visitor("demo", visitor, hours=24)[0]

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Place"]:
        """Everything started and ready; stopped at the end, in order."""
        try:
            await asyncio.to_thread(self.store.start)
            async with self.services():
                pass  # the record is migrated once, not by all processes at the same moment
            for process in self.processes.values():
                process.start()
            await self.ready()
            yield self
        finally:
            await asyncio.to_thread(self._end)

    def _end(self) -> None:
        for process in self.processes.values():
            process.signal(signal.SIGCONT)
            process.signal(signal.SIGTERM)
        for process in self.processes.values():
            process.stop()
        self.store.kill()

    async def restart(self, name: str) -> None:
        """Start what was killed, and wait until it works where that can be seen."""
        self.processes[name].start()
        if name.startswith("server-"):
            await self._server_ready(self.ports[int(name.rpartition("-")[2]) - 1], name)

    async def replace(self, name: str) -> None:
        """SIGTERM a process, wait for its end, start it again and wait until it works: a step of
        a rolling restart."""
        process = self.processes[name]
        await asyncio.to_thread(process.stop)
        before = process.log.stat().st_size
        await self.restart(name)
        if name.startswith("worker-"):
            await self._said(process, "worker.ready", before)

    async def ready(self) -> None:
        """Wait until every server is ready and every worker takes jobs."""
        for number, port in enumerate(self.ports, 1):
            await self._server_ready(port, f"server-{number}")
        for process in self.processes.values():
            if process.name.startswith("worker-"):
                await self._said(process, "worker.ready")

    async def _server_ready(self, port: int, name: str) -> None:
        async with asyncio.timeout(START_SECONDS), httpx.AsyncClient(timeout=5) as http:
            while True:
                self._must_run(name)
                try:
                    if (
                        await http.get(f"http://127.0.0.1:{port}/readyz?ignore=workers")
                    ).is_success:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.05)

    async def _said(self, process: Process, what: str, since: int = 0) -> None:
        """Wait for a word in a process's log, from byte ``since`` on."""
        async with asyncio.timeout(START_SECONDS):
            while what.encode() not in process.log.read_bytes()[since:]:
                self._must_run(process.name)
                await asyncio.sleep(0.05)

    def _must_run(self, name: str) -> None:
        process = self.processes[name]
        if process.pid and not process.runs:
            raise RuntimeError(f"{name} ended: {process.log.read_text()[-2000:]}")

    async def metric(self, server: int, name: str) -> float:
        """A metric of a server, its samples added up."""
        async with httpx.AsyncClient(timeout=10) as http:
            text = (await http.get(f"http://127.0.0.1:{self.ports[server]}/metrics")).text
        values: list[Any] = [
            line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(name)
        ]
        return sum(float(value) for value in values)
