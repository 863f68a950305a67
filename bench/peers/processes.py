"""Servers of peers as child processes: started with a log file, waited for, stopped."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.memory import Memory
from bench.peers import Endpoint

START_SECONDS = 300.0
STOP_SECONDS = 30.0
ROOT = Path(__file__).parents[2]
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@asynccontextmanager
async def served(
    command: Sequence[str], log: Path, environment: dict[str, str] | None = None
) -> AsyncIterator[int]:
    """A server in a process group of its own; its pid."""
    known = {**os.environ, **QUIET, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = await asyncio.to_thread(_start, command, log, {**known, **(environment or {})})
    try:
        yield process.pid
    finally:
        _signal(process.pid, signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        _signal(process.pid, signal.SIGKILL)  # whoever of its group did not end
        await asyncio.to_thread(process.wait)


def _start(
    command: Sequence[str], log: Path, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )


def _signal(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        pass


async def answering(endpoint: Endpoint, log: Path | None = None, pid: int | None = None) -> None:
    """Wait until a reply comes: a server may listen before its model is loaded. Raises
    RuntimeError with what it said last."""
    deadline = time.monotonic() + START_SECONDS
    said = "no answer"
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": endpoint.model, "messages": messages, "max_tokens": 4}
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    async with httpx.AsyncClient(timeout=120, headers=headers) as http:
        while time.monotonic() < deadline and (pid is None or _alive(pid)):
            try:
                answer = await http.post(f"{endpoint.url}/chat/completions", json=body)
                if answer.is_success:
                    return
                said = answer.text
            except httpx.HTTPError as error:
                said = repr(error)
            await asyncio.sleep(1)
    raise RuntimeError(f"{endpoint.name} does not answer: {said}\n{_end_of(log)}")


def _end_of(log: Path | None) -> str:
    return log.read_text(errors="replace")[-2000:] if log else ""


def _alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not state.parent.parent.joinpath("self").exists()  # no /proc: it may be alive


async def last_json(
    command: Sequence[str], memory: Memory | None = None
) -> tuple[int, dict[str, Any]]:
    """Run a program; (its exit status, the JSON of its last line). ``memory``: watches it."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=subprocess.PIPE,
        env={**os.environ, **QUIET, "PYTHONPATH": str(ROOT)},
    )
    async with (memory or Memory()).watch(process.pid if memory else None):
        output, _ = await process.communicate()
    lines = output.decode().splitlines()
    return process.returncode or 0, json.loads(lines[-1]) if lines else {}
