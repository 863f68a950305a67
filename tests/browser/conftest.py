"""Fixtures of the browser tests. Each test has its own server, store, website and Chromium."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, async_playwright, expect
from redis.asyncio import Redis

from chatbot.record.database import Database
from tests.browser.host import website
from tests.browser.stage import ARGUMENTS, Stage
from tests.browser.wire import network
from tests.chatbot.server.room import ScriptedWorker, make_services, running

expect.set_options(timeout=15_000)
PIECES = ["Your parcel ", "left ", "Bristol 🌿", "🪴 this ", "morning", ", and ", "arrives ", "soon."]


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=ARGUMENTS
        )
        yield browser
        await browser.close()


@pytest.fixture
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
