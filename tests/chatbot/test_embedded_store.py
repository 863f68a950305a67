"""The embedded store: survives SIGKILL of itself and of its parent, and is found again."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from chatbot.embedded_store import embedded_url, run_embedded_store
from chatbot.errors import StoreUnavailable


def wait_for(condition: Callable[[], object], seconds: float = 20.0) -> object:
    """The first true value of ``condition``; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.02)
    return value


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts `frontdesk store` as the supervisor does, tied to a pipe that we hold."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "chatbot.supervised", "store", "--data-dir", str(tmp_path)],
            stdin=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)
    url = embedded_url(tmp_path)
    assert url is None, "a store was left running"


def test_keeps_everything_over_a_stop(tmp_path: Path) -> None:
    def serve_once(work: Callable[[Redis], None]) -> None:
        stop = threading.Event()
        thread = threading.Thread(target=run_embedded_store, args=(tmp_path, stop))
        thread.start()
        url = str(wait_for(lambda: embedded_url(tmp_path)))
        with Redis.from_url(url, decode_responses=True) as client:
            work(client)
        stop.set()
        thread.join(20)
        assert embedded_url(tmp_path) is None

    serve_once(lambda client: client.set("a", "1"))

    def read(client: Redis) -> None:
        assert client.get("a") == "1"

    serve_once(read)


def test_an_orphan_is_replaced_and_loses_nothing(
    tmp_path: Path, supervised: Callable[[], subprocess.Popen[bytes]]
) -> None:
    first = supervised()
    url = str(wait_for(lambda: embedded_url(tmp_path)))
    with Redis.from_url(url) as client:
        client.set("a", "1")
    os.kill(first.pid, signal.SIGKILL)  # its Valkey lives on, without a parent
    first.wait()
    assert embedded_url(tmp_path) == url
    supervised()
    new_url = str(
        wait_for(lambda: (now := embedded_url(tmp_path)) is not None and now != url and now)
    )
    with Redis.from_url(new_url, decode_responses=True) as client:
        assert client.get("a") == "1"


def test_ends_with_its_parent(
    tmp_path: Path, supervised: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = supervised()
    wait_for(lambda: embedded_url(tmp_path))
    assert process.stdin is not None
    process.stdin.close()  # what the kernel does when the parent dies
    assert process.wait(20) == 0
    assert embedded_url(tmp_path) is None


def test_a_store_that_cannot_start_says_why(tmp_path: Path) -> None:
    append_only = tmp_path / "valkey" / "appendonlydir"
    append_only.mkdir(parents=True)
    (append_only / "appendonly.aof.manifest").write_text("this is no manifest\n")
    with pytest.raises(StoreUnavailable, match="did not start"):
        run_embedded_store(tmp_path, threading.Event())
    assert (append_only / "appendonly.aof.manifest").read_text() == "this is no manifest\n"
