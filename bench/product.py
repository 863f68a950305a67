"""The whole product as real processes, for benchmarks and tests: started in a data directory on a
free loopback port, reached over HTTP, stopped at the end."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

START_SECONDS = 180.0
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "frontdesk-tests"


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(pid: int) -> dict[str, int]:
    """The supervised processes of `frontdesk up`: name -> pid."""
    listing = subprocess.run(
        ["ps", "-axo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    found = {}
    for line in listing.splitlines():
        own, parent, command = line.split(None, 2)
        name = command.partition("chatbot.supervised ")[2].split(" ")[0]
        if int(parent) == pid and name:
            found[name] = int(own)
    return found


def lend_base_model(data_dir: Path) -> None:
    """Link the converted base model into ``data_dir``, so that it is not converted again."""
    from chatbot.base_models import base_directory

    directory = base_directory("smollm2-135m", CACHE)
    target = data_dir / directory.relative_to(CACHE)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(directory, target, copy_function=os.link)


@dataclass(frozen=True, slots=True)
class Product:
    """A running `frontdesk up`."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    url: str

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def token(self) -> str:
        """The admin API's token."""
        return (self.data_dir / "admin-token").read_text().strip()

    async def ready(self, seconds: float = START_SECONDS) -> None:
        """Wait until a server and a worker answer. Raises TimeoutError with what is missing."""
        deadline = time.monotonic() + seconds
        said = "no answer"
        async with httpx.AsyncClient(timeout=5) as client:
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    raise RuntimeError(f"`frontdesk up` ended with {self.process.returncode}")
                try:
                    answer = await client.get(f"{self.url}/readyz")
                    if answer.is_success:
                        return
                    said = answer.text
                except httpx.HTTPError as error:
                    said = repr(error)
                await asyncio.sleep(0.1)
        raise TimeoutError(f"not ready after {seconds} s: {said}")


@asynccontextmanager
async def running_product(
    data_dir: Path, port: int, *options: str, environment: dict[str, str] | None = None
) -> AsyncIterator[Product]:
    """`frontdesk up --no-console` until the block ends (SIGTERM, as a service manager does)."""
    lend_base_model(data_dir)
    process = _start(data_dir, port, options, environment or {})
    product = Product(process, data_dir, f"http://127.0.0.1:{port}")
    try:
        await product.ready()
        yield product
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 60)


def _start(
    data_dir: Path, port: int, options: tuple[str, ...], environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "chatbot.cli", "up", "--no-console"]
    with (data_dir / "up.log").open("ab") as output:
        return subprocess.Popen(
            [*command, "--data-dir", str(data_dir), "--port", str(port), *options],
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
        )
