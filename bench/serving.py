"""Chats served side by side by several engines, on the same weights.

    python -m bench.serving [--peers none|all|NAME,...] [--chats 1,4,16,64] [--quick]
                            [--version DIRECTORY] [--runtime auto|torch|openvino,...]
                            [--modes fixed,natural,poisson] [--turns 6] [--tokens 48]
                            [--peer-python NAME=PATH] ... [--peer NAME=URL,MODEL[,KEY]] ...

"ours" is the whole product, started here: store, server, worker; with ``--version`` that version is
live, else the untuned base model. Peers get the same weights, the adapter merged:

    generate   a transformers generate loop behind a minimal server, bfloat16
    openvino   OpenVINO GenAI's pipeline in its own process, without a server, int8
    llamacpp   llama-server, Q8_0
    vllm       vllm serve on the CPU, bfloat16

docs/runtimes.md says how to install them. Any other server that runs already: ``--peer``.

Engines are measured one after the other (with ``--rounds N`` by turns, all of them started; medians
count), each by a process of its own that says what real
visitors said (bench/load.py). Three loads: ``fixed``, a closed loop of replies of ``--tokens``
tokens; ``natural``, the same with replies that end by themselves; ``poisson``, natural ends, chats
that begin at random within about ``--window`` seconds. Each run opens its system prompt anew, so
that it finds nothing in a cache. A speed counts only beside its quality: the perplexity of exactly
the weights that are served, on agent text of ``--data``.

``--quick``: 16 chats, 2 turns, fixed. Prints a table; the last line is JSON.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from bench.memory import Memory
from bench.peers import Endpoint, Engine, Needs, PeerMissing, running
from bench.peers.generate import generate
from bench.peers.llamacpp import llamacpp
from bench.peers.openvino import openvino
from bench.peers.ours import ours
from bench.peers.processes import answering, last_json
from bench.peers.vllm import vllm
from bench.peers.weights import Weights
from bench.texts import write_texts

PEERS: dict[str, Callable[[Weights, Needs], AbstractAsyncContextManager[Engine]]] = {
    "generate": generate,
    "openvino": openvino,
    "llamacpp": llamacpp,
    "vllm": vllm,
}
MODES = ("fixed", "natural", "poisson")
DATA = Path(os.environ.get("FRONTDESK_TEST_DATA", "../shared/data")) / "star-val.jsonl.gz"
WORK = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "frontdesk-bench"
HEAD = (
    f"{'engine':<16}{'load':<9}{'chats':>5}{'tokens/s':>10}{'replies/s':>11}{'itl p50':>9}"
    f"{'p95':>7}{'p99':>7}{'cached':>8}{'errors':>8}{'MB':>7}  ttft p50 by turn, ms"
)


def row(name: str, mode: str, chats: int, run: dict[str, Any]) -> str:
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
        (run.get("peak_memory_mb"), 7, 0),
    ]
    columns = "".join(f"{shown(value, digits):>{width}}" for value, width, digits in numbers)
    by_turn = " ".join(shown(value, 0) for value in run["ttft_p50_ms"])
    return f"{name:<16}{mode:<9}{chats:>5}{columns}  {by_turn}"


async def load(
    engine: Engine, mode: str, chats: int, number: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One run of the engine's load program. Raises RuntimeError: it failed."""
    given = {
        "data": options.data,
        "chats": chats,
        "turns": options.turns,
        "tokens": options.tokens if mode == "fixed" else 0,
        "arrivals": chats / options.window if mode == "poisson" else 0.0,
        "label": f"Desk {mode} {chats} {number}.",
    }
    command = [*engine.load]
    command += [part for name, value in given.items() for part in (f"--{name}", str(value))]
    memory = Memory()
    async with memory.watch(engine.pid):
        status, result = await last_json(command, memory if engine.in_process else None)
    if status:
        raise RuntimeError(f"the load on {engine.name} ended with {status}")
    result["peak_memory_mb"] = round(memory.peak) or None
    print(row(engine.name, mode, chats, result), flush=True)
    return result


async def measure(engines: Sequence[Engine], options: argparse.Namespace) -> dict[str, Any]:
    """The runs of these engines, by turns: whatever else the machine does disturbs all alike."""
    found: dict[str, Any] = {engine.name: {"perplexity": None} for engine in engines}
    for mode in options.modes:
        # the first load's numbers are "chats", those of others "chats_natural" ...
        key = "chats" if mode == options.modes[0] else f"chats_{mode}"
        for chats in options.chats:
            runs: dict[str, list[dict[str, Any]]] = {engine.name: [] for engine in engines}
            for number in range(options.rounds):
                for engine in engines:
                    runs[engine.name].append(await load(engine, mode, chats, number, options))
            for name, rounds in runs.items():
                found[name].setdefault(key, {})[str(chats)] = middle(rounds)
    return found


async def score(engine: Engine, texts: Path) -> dict[str, Any]:
    """The perplexity of what it serves. Raises RuntimeError."""
    command = [str(texts) if part == "TEXTS" else part for part in engine.score]
    status, scored = await last_json(command)
    if status:
        raise RuntimeError(f"the perplexity of {engine.name} ended with {status}")
    print(f"{engine.name:<16}perplexity {scored['perplexity']}", flush=True)
    return scored


def middle(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The medians of several runs; errors are added up."""
    if len(rounds) == 1:
        return rounds[0]
    found = {key: _median([run[key] for run in rounds]) for key in rounds[0]}
    found["errors"] = sum(run["errors"] for run in rounds)
    found["tokens_per_s_of_rounds"] = [run["tokens_per_s"] for run in rounds]
    return found


def _median(values: Sequence[Any]) -> Any:
    if any(value is None or isinstance(value, str) for value in values):
        return next((value for value in values if value is not None), None)
    if isinstance(values[0], list):
        return [_median(column) for column in zip(*values, strict=True)]
    return statistics.median(values)


def engines(
    options: argparse.Namespace, weights: Weights
) -> list[AbstractAsyncContextManager[Engine]]:
    """What was asked for, not started."""
    settings = dict(pair.split("=", 1) for pair in options.set)
    found: list[AbstractAsyncContextManager[Engine]] = [
        ours(f"ours_{runtime}" if place else "ours", options.version, settings, runtime)
        for place, runtime in enumerate(options.runtime)
    ]
    needs = Needs(options.work, max(options.chats), options.peer_python, options.llama_server)
    found += [PEERS[name](weights, needs) for name in options.peers]
    return [*found, *map(_running, options.peer)]


@asynccontextmanager
async def _running(endpoint: Endpoint) -> AsyncIterator[Engine]:
    await answering(endpoint)
    yield Engine(endpoint.name, endpoint.load)


async def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure ours and each peer: one after the other, or, with several rounds, side by side."""
    options.work.mkdir(parents=True, exist_ok=True)
    weights = Weights(options.version, options.work)
    texts = options.work / "texts.json"
    write_texts(options.data, weights.tokenizer(), options.texts, texts)
    print(HEAD)
    measured: dict[str, Any] = {}
    groups = [[started] for started in engines(options, weights)]
    if options.rounds > 1:
        groups = [[started for (started,) in groups]]
    for group in groups:
        async with AsyncExitStack() as stack:
            running = [await stack.enter_async_context(started) for started in group]
            measured |= await measure(running, options)
            for engine in running:
                if engine.score and options.texts:
                    measured[engine.name] |= await score(engine, texts)
    return {
        "bench": "serving",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "version": options.version.name if options.version else None,
        "turns": options.turns,
        "tokens": options.tokens,
        "modes": list(options.modes),
        "rounds": options.rounds,
        "engines": measured,
    }


def _peers(text: str) -> list[str]:
    names = {"none": [], "all": list(PEERS)}.get(text, text.split(","))
    unknown = set(names) - set(PEERS)
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(PEERS)}")
    return names


def _modes(text: str) -> list[str]:
    names = text.split(",")
    if not names or set(names) - set(MODES):
        raise argparse.ArgumentTypeError(f"{text}: there are {', '.join(MODES)}")
    return names


def _python(text: str) -> tuple[str, Path]:
    name, _, path = text.partition("=")
    if name not in PEERS or not path:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=PATH of {', '.join(PEERS)}")
    return name, Path(path).absolute()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--peers", type=_peers, default=[], help=f"none, all, {', '.join(PEERS)}")
    parser.add_argument("--chats", default="1,4,16,64")
    parser.add_argument("--runtime", default="auto", help="of ours; several: torch,openvino")
    parser.add_argument("--modes", type=_modes, default=list(MODES), help=", ".join(MODES))
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=48, help="of each reply that is fixed")
    parser.add_argument("--rounds", type=int, default=1, help="by turns, all engines started")
    parser.add_argument("--window", type=float, default=20.0, help="seconds in which chats begin")
    parser.add_argument("--texts", type=int, default=40, help="dialogues scored; 0: none")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--version", type=Path, help="directory of a version")
    parser.add_argument("--peer-python", type=_python, action="append", default=[])
    parser.add_argument("--llama-server", default="llama-server", metavar="PATH")
    parser.add_argument("--peer", type=running, action="append", default=[])
    parser.add_argument("--set", action="append", default=[], metavar="FRONTDESK_X=Y")
    parser.add_argument("--without-ours", action="store_true")
    parser.add_argument("--work", type=Path, default=WORK, help="converted weights are kept here")
    parser.add_argument("--quick", action="store_true")
    parsed = parser.parse_args(arguments)
    if parsed.quick:
        parsed.chats, parsed.turns, parsed.modes, parsed.texts = "16", 2, ["fixed"], 12
    parsed.chats = [int(count) for count in parsed.chats.split(",")]
    parsed.runtime = [] if parsed.without_ours else parsed.runtime.split(",")
    parsed.peer_python = dict(parsed.peer_python)
    return parsed


def _interrupt(*_: object) -> None:
    """SIGTERM as Ctrl-C: the servers that were started are stopped. (Not by raising SIGINT, which
    a program that a script started in the background ignores.)"""
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        result = asyncio.run(compare(options))
    except PeerMissing as error:
        sys.exit(str(error))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
