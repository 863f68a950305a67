"""Runs the processes of one machine: starts them in order, restarts what dies, stops them in the
reverse order. Knows nothing of what they do."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

log = structlog.get_logger()
RESTART_DELAYS = (0.5, 1.0, 2.0, 5.0, 10.0)  # seconds; the last one repeats
STABLE_SECONDS = 30.0  # a process that ran this long starts its delays anew
STOP_SECONDS = 20.0  # between SIGTERM and SIGKILL


@dataclass(frozen=True, slots=True)
class Program:
    """One process. ``arguments`` go to the ``frontdesk`` command; ``ready`` returns once the
    process serves, and the next program starts only then. Output goes to ``log_file``."""

    name: str
    arguments: tuple[str, ...]
    log_file: Path
    ready: Callable[[], Awaitable[bool]] | None = None
    environment: dict[str, str] = field(default_factory=dict)


class Supervisor:
    """Keeps ``programs`` running. One instance, one asyncio loop."""

    def __init__(self, programs: list[Program]) -> None:
        self._programs = programs
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}

    async def start(self, ready_seconds: float = 120.0) -> None:
        """Start all in order.

        Raises:
            RuntimeError: one did not become ready; its name and log file are in the message. The
                caller then calls :meth:`stop`.
        """
        for program in self._programs:
            self._keepers[program.name] = asyncio.create_task(self._keep(program))
            await self._wait_ready(program, time.monotonic() + ready_seconds)

    async def _wait_ready(self, program: Program, deadline: float) -> None:
        while program.ready is not None and not await program.ready():
            if time.monotonic() > deadline:
                raise RuntimeError(f"{program.name} did not start; see {program.log_file}")
            await asyncio.sleep(0.1)

    async def _keep(self, program: Program) -> None:
        """Run the program for ever; every end of it is unexpected while this task lives."""
        failures = 0
        while True:
            began = time.monotonic()
            process = await self._spawn(program)
            code = await process.wait()
            failures = 0 if time.monotonic() - began > STABLE_SECONDS else failures + 1
            delay = RESTART_DELAYS[min(failures, len(RESTART_DELAYS)) - 1] if failures else 0.0
            log.warning("process.ended", name=program.name, code=code, restart_in=delay)
            await asyncio.sleep(delay)

    async def _spawn(self, program: Program) -> asyncio.subprocess.Process:
        program.log_file.parent.mkdir(parents=True, exist_ok=True)
        with program.log_file.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "chatbot.supervised",
                *program.arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**os.environ, **program.environment},
                # Ctrl-C in the terminal must reach only us: we stop the others in order
                start_new_session=True,
            )
        self._processes[program.name] = process
        return process

    async def stop(self) -> None:
        """Stop all, last started first; each gets STOP_SECONDS before it is killed."""
        for program in reversed(self._programs):
            keeper = self._keepers.pop(program.name, None)
            if keeper is None:
                continue
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            process = self._processes.get(program.name)
            if process is not None and process.returncode is None:
                await _end(process)
                log.info("process.stopped", name=program.name)


async def _end(process: asyncio.subprocess.Process) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
