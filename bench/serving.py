"""Chats served side by side by several engines, each through its OpenAI-compatible API.

    python -m bench.serving [--chats 1,4,16,64] [--turns 6] [--tokens 48] [--quick]
                            [--version DIRECTORY] [--data star-val.jsonl.gz]
                            [--peer NAME=URL,MODEL[,KEY]] ... [--set FRONTDESK_X=Y] ...
                            [--without-ours]

"ours" is the whole product, started here: store, server, worker; with ``--version`` that version
is live, else the untuned base model. A peer is any OpenAI-compatible server that runs already, to
be compared on the same weights: merge the adapter for one that cannot load it. Engines are measured
one after the other, by bench/load.py in a process of its own. A speed counts only beside its
quality: say with which precision each engine ran.

``--tokens 0`` lets replies end by themselves. ``--quick``: 16 chats, 2 turns, 16 tokens.

Prints a table; the last line is JSON.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.peers import Endpoint, running
from bench.peers.ours import ours

START_SECONDS = 300.0
WATCH_SECONDS = 0.5
DATA = Path(os.environ.get("FRONTDESK_TEST_DATA", "../shared/data")) / "star-val.jsonl.gz"


async def answering(endpoint: Endpoint) -> None:
    """Wait until a reply comes: a server may listen before its model is loaded. Raises
    RuntimeError with what it said last."""
    deadline = time.monotonic() + START_SECONDS
    said = "no answer"
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": endpoint.model, "messages": messages, "max_tokens": 4}
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    async with httpx.AsyncClient(timeout=120, headers=headers) as http:
        while time.monotonic() < deadline:
            try:
                answer = await http.post(f"{endpoint.url}/chat/completions", json=body)
                if answer.is_success:
                    return
                said = answer.text
            except httpx.HTTPError as error:
                said = repr(error)
            await asyncio.sleep(1)
    raise RuntimeError(f"{endpoint.name} does not answer: {said}")


class Memory:
    """The peak of what a process and its descendants hold, in MB (resident; shared pages count
    once for each process)."""

    def __init__(self) -> None:
        self.peak = 0.0

    @asynccontextmanager
    async def watch(self, pid: int | None) -> AsyncIterator[None]:
        task = asyncio.create_task(self._watch(pid)) if pid is not None else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _watch(self, pid: int) -> None:
        while True:
            self.peak = max(self.peak, await asyncio.to_thread(tree_megabytes, pid))
            await asyncio.sleep(WATCH_SECONDS)


def tree_megabytes(root: int) -> float:
    """Resident memory of a process and all its descendants now."""
    command = ["ps", "-axo", "pid=,ppid=,rss="]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [tuple(map(int, line.split())) for line in listing.splitlines()]
    family, grown = {root}, True
    while grown:
        more = {pid for pid, parent, _ in rows if parent in family} - family
        family |= more
        grown = bool(more)
    return sum(kilobytes for pid, _, kilobytes in rows if pid in family) / 1024


async def load(endpoint: Endpoint, chats: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run of bench/load.py. Raises RuntimeError: it failed."""
    command = [sys.executable, "-m", "bench.load", endpoint.url, endpoint.model]
    given = {
        "key": endpoint.key,
        "data": options.data,
        "chats": chats,
        "turns": options.turns,
        "tokens": options.tokens,
        "arrivals": options.arrivals,
    }
    command += [part for name, value in given.items() for part in (f"--{name}", str(value))]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load on {endpoint.name} ended with {process.returncode}")
    result: dict[str, Any] = json.loads(output.decode().splitlines()[-1])
    return result


async def measure(endpoint: Endpoint, options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one engine."""
    await answering(endpoint)
    memory = Memory()
    runs: dict[str, dict[str, Any]] = {}
    async with memory.watch(endpoint.pid):
        for chats in options.chats:
            runs[str(chats)] = await load(endpoint, chats, options)
            print(row(endpoint.name, chats, runs[str(chats)]), flush=True)
    peak = round(memory.peak) if endpoint.pid is not None else None
    return {"peak_memory_mb": peak, "chats": runs}


HEAD = (
    f"{'engine':<12}{'chats':>6}{'tokens/s':>10}{'replies/s':>11}{'itl p50':>9}{'p95':>7}"
    f"{'p99':>7}{'cached':>8}{'errors':>8}  ttft p50 by turn, ms"
)


def row(name: str, chats: int, run: dict[str, Any]) -> str:
    def shown(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    numbers = [
        (run["tokens_per_s"], 10, 1),
        (run["replies_per_s"], 11, 2),
        (run["itl_p50_ms"], 9, 0),
        (run["itl_p95_ms"], 7, 0),
        (run["itl_p99_ms"], 7, 0),
        (run["cached_share"], 8, 2),
        (run["errors"], 8, 0),
    ]
    columns = "".join(f"{shown(value, digits):>{width}}" for value, width, digits in numbers)
    by_turn = " ".join(shown(value, 0) for value in run["ttft_p50_ms"])
    return f"{name:<12}{chats:>6}{columns}  {by_turn}"


async def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure ours and each peer, one after the other."""
    print(HEAD)
    engines: dict[str, Any] = {}
    if not options.without_ours:
        settings = dict(pair.split("=", 1) for pair in options.set)
        async with ours("ours", options.version, settings) as endpoint:
            engines["ours"] = await measure(endpoint, options)
    for endpoint in options.peer:
        engines[endpoint.name] = await measure(endpoint, options)
    return {
        "bench": "serving",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "turns": options.turns,
        "tokens": options.tokens or "natural",
        "arrivals_per_s": options.arrivals or "closed loop",
        "engines": engines,
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--chats", default="1,4,16,64")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=48, help="of each reply; 0: natural ends")
    parser.add_argument("--arrivals", type=float, default=0.0, help="chats a second; 0: at once")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--version", type=Path, help="directory of a version, for ours")
    parser.add_argument("--peer", type=running, action="append", default=[])
    parser.add_argument("--set", action="append", default=[], metavar="FRONTDESK_X=Y")
    parser.add_argument("--without-ours", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parsed = parser.parse_args(arguments)
    if parsed.quick:
        parsed.chats, parsed.turns, parsed.tokens = "16", 2, 16
    parsed.chats = [int(count) for count in parsed.chats.split(",")]
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    print(json.dumps(asyncio.run(compare(parse(arguments)))))


if __name__ == "__main__":
    main()
