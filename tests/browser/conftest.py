"""Fixtures of the browser tests. One Chromium for all; each test has its own server, store,
website and browser contexts. Everything runs in one event loop, that of Chromium's driver."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright, expect
from redis.asyncio import Redis

from chatbot.record.database import Database, sqlite_url
from tests.browser.host import website
from tests.browser.stage import ARGUMENTS, PIECES, Stage
from tests.browser.wire import network
from tests.chatbot.server.room import ScriptedWorker, make_services, running

expect.set_options(timeout=15_000)  # a deadline, not a wait


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        # those without a coroutine read files only
        if here in item.path.parents and inspect.iscoroutinefunction(
            getattr(item, "function", None)
        ):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=ARGUMENTS
        )
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """As the common one, in the browser's event loop."""
    client = Redis.from_url(redis_url, decode_responses=True)
    await client.flushdb()
    yield client
    await client.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def hall(
    redis_url: str, tmp_path_factory: pytest.TempPathFactory, browser: Browser
) -> AsyncIterator[Stage]:
    """As ``stage``, shared by the tests of one module: use it through ``lobby``."""
    folder = tmp_path_factory.mktemp("hall")
    client = Redis.from_url(redis_url, decode_responses=True)
    await client.flushdb()
    database = Database(sqlite_url(folder))
    database.migrate()
    many = {"visitors_per_minute": 100_000, "conversations_per_address": 100_000}
    services = make_services(client, database, folder, **many)
    worker = ScriptedWorker(services, list(PIECES))
    async with (
        running(services) as server,
        network(int(server.url.rsplit(":", 1)[1])) as net,
    ):
        with website(net.url) as site:
            async with worker.at_work():
                yield Stage(server, net, site, browser, worker)
    await client.aclose()
    database.close()


@pytest_asyncio.fixture(loop_scope="session")
async def lobby(hall: Stage) -> AsyncIterator[Stage]:
    """The shared stage, as a new one would be, but for the conversations of earlier tests; the
    worker does not wait. Ends as ``stage`` does."""
    hall.website.attributes = 'data-site="demo"'
    hall.worker.pieces[:] = PIECES
    hall.worker.gate = None
    hall.set_site(title="Demo", welcome="")
    hall.problems.clear()
    yield hall
    hall.network.refusing = False
    hall.network.flow()
    await hall.close()
    assert hall.problems == []


@pytest_asyncio.fixture(loop_scope="session")
async def stage(
    redis: Redis, database: Database, tmp_path: Path, browser: Browser
) -> AsyncIterator[Stage]:
    """Everything up, the worker waiting for ``stage.release()``. Ends by asserting that no page
    raised an exception or opened a dialog."""
    services = make_services(redis, database, tmp_path)
    worker = ScriptedWorker(services, list(PIECES), asyncio.Semaphore(0))
    async with running(services) as server, network(int(server.url.rsplit(":", 1)[1])) as net:
        with website(net.url) as site:
            async with worker.at_work():
                stage = Stage(server, net, site, browser, worker)
                yield stage
                await stage.close()
    assert stage.problems == []
