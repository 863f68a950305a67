"""Engines that bench/serving.py measures. Each is started by an async context manager that gives
an :class:`Engine`; all have the same weights, each in the form that it takes (see weights.py)."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


class PeerMissing(RuntimeError):
    """A peer is not installed. The message says how to install it."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine that answers, and the programs that ask it.

    ``load``: a command that drives it, taking the options of bench/load.py; ``score``: one whose
    last line has the perplexity of its weights, taking the file of texts in place of "TEXTS".
    ``pid``: of the process whose whole tree belongs to it; None where the loading process itself is
    the engine, or where it was running before.
    """

    name: str
    load: Sequence[str]
    score: Sequence[str] = ()
    pid: int | None = None
    in_process: bool = False  # the process of ``load`` is the engine


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible server."""

    name: str
    url: str  # ends with /v1
    model: str
    key: str = "none"

    @property
    def load(self) -> list[str]:
        command = [sys.executable, "-m", "bench.load", self.url, self.model]
        return [*command, "--key", self.key]


@dataclass(frozen=True, slots=True)
class Needs:
    """What it takes to start peers."""

    work: Path  # converted weights and logs
    most_chats: int
    pythons: dict[str, Path] = field(default_factory=dict)  # peer -> its interpreter
    llama_server: str = "llama-server"  # a path, or a name on PATH


def running(text: str) -> Endpoint:
    """An endpoint that somebody else started: ``NAME=URL,MODEL[,KEY]``. Raises ValueError."""
    name, equals, rest = text.partition("=")
    url, *others = rest.split(",")
    if not (name and equals and url.startswith("http") and 1 <= len(others) <= 2):
        raise ValueError(f"{text!r} is not NAME=URL,MODEL[,KEY]")
    return Endpoint(name, url.rstrip("/"), *others)


async def peer_python(needs: Needs, name: str, module: str, install: str) -> str:
    """The interpreter that has a peer's packages: the one that was named, else this one.

    Raises:
        PeerMissing: ``module`` is not installed there.
    """
    python = str(needs.pythons.get(name, sys.executable))
    probe = f"import importlib.util, sys; sys.exit(not importlib.util.find_spec({module!r}))"
    try:
        process = await asyncio.create_subprocess_exec(python, "-c", probe)
        found = await process.wait() == 0
    except OSError:
        found = False
    if not found:
        raise PeerMissing(
            f"{name}: {python} has no module {module}. Install the peer in an environment of its "
            f"own and name its interpreter:\n  python -m venv peers/{name}\n"
            f"  peers/{name}/bin/pip install {install}\n"
            f"  python -m bench.serving --peers {name} "
            f"--peer-python {name}=peers/{name}/bin/python"
        )
    return python
