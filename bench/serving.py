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

Engines are measured one after the other, each by a process of its own that says what real
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
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from bench.memory import Memory
from bench.peers import Engine, Needs, PeerMissing, running
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


async def load(engine: Engine, mode: str, chats: int, options: argparse.Namespace) -> Any:
    """One run of the engine's load program. Raises RuntimeError: it failed."""
    given = {
        "data": options.data,
        "chats": chats,
        "turns": options.turns,
        "tokens": options.tokens if mode == "fixed" else 0,
        "arrivals": chats / options.window if mode == "poisson" else 0.0,
        "label": f"Desk {mode} {chats}.",
    }
    command = [*engine.load]
    command += [part for name, value in given.items() for part in (f"--{name}", str(value))]
    memory = Memory()
    async with memory.watch(engine.pid or (os.getpid() if engine.in_process else None)):
        status, result = await last_json(command)
    if status:
        raise RuntimeError(f"the load on {engine.name} ended with {status}")
    result["peak_memory_mb"] = round(memory.peak) or None
    return result


async def measure(engine: Engine, texts: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All numbers of one engine."""
    found: dict[str, Any] = {"perplexity": None, "chats": {}}
    for mode in options.modes:
        runs = found.setdefault("chats" if mode == options.modes[0] else f"chats_{mode}", {})
        for chats in options.chats:
            runs[str(chats)] = await load(engine, mode, chats, options)
            print(row(engine.name, mode, chats, runs[str(chats)]), flush=True)
    if engine.score and options.texts:
        command = [str(texts) if part == "TEXTS" else part for part in engine.score]
        status, scored = await last_json(command)
        if status:
            raise RuntimeError(f"the perplexity of {engine.name} ended with {status}")
        found |= scored
        print(f"{engine.name:<16}perplexity {scored['perplexity']}", flush=True)
    return found


def engines(
    options: argparse.Namespace, weights: Weights
) -> dict[str, AbstractAsyncContextManager[Engine]]:
    """By name, not started."""
    found: dict[str, AbstractAsyncContextManager[Engine]] = {}
    settings = dict(pair.split("=", 1) for pair in options.set)
    for runtime in options.runtime:
        name = "ours" if runtime == options.runtime[0] else f"ours_{runtime}"
        found[name] = ours(name, options.version, settings, runtime)
    needs = Needs(options.work, max(options.chats), options.peer_python, options.llama_server)
    for name in options.peers:
        found[name] = PEERS[name](weights, needs)
    return found


async def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Measure ours and each peer, one after the other."""
    options.work.mkdir(parents=True, exist_ok=True)
    weights = Weights(options.version, options.work)
    texts = options.work / "texts.json"
    write_texts(options.data, weights.tokenizer(), options.texts, texts)
    print(HEAD)
    measured: dict[str, Any] = {}
    for name, started in engines(options, weights).items():
        async with started as engine:
            measured[name] = await measure(engine, texts, options)
    for endpoint in options.peer:
        await answering(endpoint)
        measured[endpoint.name] = await measure(
            Engine(endpoint.name, endpoint.load), texts, options
        )
    return {
        "bench": "serving",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "version": options.version.name if options.version else None,
        "turns": options.turns,
        "tokens": options.tokens,
        "modes": list(options.modes),
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


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        result = asyncio.run(compare(options))
    except PeerMissing as error:
        sys.exit(str(error))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
