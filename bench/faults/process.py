"""The processes of an experiment, forked from one that has loaded the product's code.

They are the product's own, as `frontdesk server` and so on run them, with two differences that
the options ask for: a worker writes with the paced engine (``words``, ``seconds``) unless
``real`` is set, and ``clock`` shifts the process's clock by so many seconds.

``python -m bench.faults.process`` is the parent: it reads one JSON object a line, forks, and
answers with the child's pid. When its input ends, all children are killed.
"""

import asyncio
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from datetime import datetime
from pathlib import Path
from typing import Any, Self

LOADED = (
    "chatbot.server.app",
    "chatbot.server.run",
    "chatbot.worker.worker",
    "chatbot.trainer",
    "chatbot.processes",
    "bench.faults.engine",
)


class Nursery:
    """Starts processes; end it with :meth:`close`. Not thread-safe."""

    def __init__(self) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "bench.faults.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def spawn(self, role: str, options: dict[str, Any], environ: dict[str, str], log: Path) -> int:
        """The pid of a new process."""
        assert self._parent.stdin
        assert self._parent.stdout
        order = {"role": role, "options": options, "environ": environ, "log": str(log)}
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        return int(self._parent.stdout.readline())

    def close(self) -> None:
        """Kill what still runs."""
        assert self._parent.stdin
        assert self._parent.stdout
        self._parent.stdin.close()
        self._parent.wait()
        self._parent.stdout.close()


def alive(pid: int) -> bool:
    """Whether a process of a nursery still runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def shift_clock(seconds: float) -> None:
    """Let this process believe that it is so much later. Its monotonic clock stays."""
    import jwt.api_jwt

    right = time.time

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Self:
            return cls.fromtimestamp(right() + seconds, tz)

    time.time = lambda: right() + seconds
    jwt.api_jwt.datetime = Shifted  # type: ignore[misc,attr-defined]


def run(role: str, options: dict[str, Any]) -> None:
    """Be the process ``role`` until SIGTERM."""
    from bench.faults.engine import PacedEngine
    from chatbot import processes
    from chatbot.logs import configure_logs
    from chatbot.settings import load_settings

    if options.get("clock"):
        shift_clock(options["clock"])
    settings = load_settings()
    configure_logs(settings, role)
    if role == "server":
        asyncio.run(processes.run_server(settings))
    elif role == "archiver":
        asyncio.run(processes.run_archiver(settings))
    elif role == "trainer":
        processes.run_trainer(settings)
    elif options.get("real"):
        asyncio.run(processes.run_worker(settings))
    else:
        engine = PacedEngine(options["words"], options["seconds"])
        asyncio.run(processes.run_worker(settings, lambda _: engine))


def _child(order: dict[str, Any]) -> None:
    """Never returns."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        output = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.clear()
        os.environ.update(order["environ"])
        run(order["role"], order["options"])
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    for name in LOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
    children = []
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _child(json.loads(line))
        children.append(pid)
        print(pid, flush=True)
    for pid in children:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
