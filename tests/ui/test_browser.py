"""The console as a process of its own, in a real browser."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Literal

import httpx
import pytest
from playwright.async_api import Page, async_playwright

from tests.browser.payloads import PAYLOADS
from tests.ui.fake_api import PASSWORD, SCRIPT, World, add_conversation, build, populate, serving

pytestmark = pytest.mark.browser
CORPUS = "\n\n".join(PAYLOADS)
# white space is shown otherwise, and a NUL not at all
PLAIN = [text for text in PAYLOADS if text.isprintable() and text == " ".join(text.split())]
COMMAND = "import typer; from ui.cli import console; typer.run(console)"
DEADLINE = 30.0  # seconds, on a busy machine


@pytest.fixture(scope="module")
def shared_world() -> World:
    world = populate(World())
    add_conversation(world, "evil", SCRIPT, reply=SCRIPT)
    add_conversation(world, "corpus", CORPUS, reply=CORPUS, visitor=PAYLOADS[1], agent=PAYLOADS[1])
    return world


@pytest.fixture
def world(shared_world: World) -> World:
    """One run going on at step 30."""
    shared_world.runs.clear()
    shared_world.begin_run(steps=30)
    return shared_world


@pytest.fixture(scope="module")
def console_url(shared_world: World) -> Iterator[str]:
    """`frontdesk console` as a process; it must end by SIGTERM although a browser is connected."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving(build(shared_world)) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "--port", str(port)],
            env={**os.environ, "FRONTDESK_PUBLIC_URL": server},
        )
        try:
            _wait_until_healthy(process, f"http://127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            assert process.wait(DEADLINE) in (0, -15)


def _wait_until_healthy(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        assert process.poll() is None, "the console ended by itself"
        try:
            if httpx.get(f"{url}/_stcore/health").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail(f"no console at {url} within {DEADLINE} s")


@asynccontextmanager
async def browsing(scheme: Literal["light", "dark"] = "light") -> AsyncIterator[Page]:
    flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
        page = await browser.new_page(color_scheme=scheme)
        page.set_default_timeout(DEADLINE * 1000)
        yield page
        await browser.close()


async def log_in(page: Page, url: str) -> None:
    await page.goto(url)
    await page.get_by_role("textbox", name="User name").fill("ada")
    await page.get_by_role("textbox", name="Password").fill(PASSWORD)
    async with page.expect_response("**/console/session") as answer:
        await page.get_by_role("button", name="Log in").click()
    assert (await answer.value).status == 204


async def test_a_login_survives_a_reload_and_ends_with_the_log_out(
    console_url: str, world: World
) -> None:
    async with browsing() as page:
        await log_in(page, console_url)
        [cookie] = [c for c in await page.context.cookies() if c["name"] == "frontdesk_console"]
        assert cookie["httpOnly"]
        assert cookie["sameSite"] == "Strict"
        await page.goto(f"{console_url}/training")
        await page.get_by_text("Step 30 of 120").first.wait_for()
        await page.reload()
        await page.get_by_text("Step 30 of 120").first.wait_for()
        await page.get_by_role("button", name="Log out").click()
        await page.get_by_text("You are logged out.").wait_for()
        await page.reload()
        await page.get_by_role("button", name="Log in").wait_for()


async def test_scripts_of_visitors_models_and_reports_do_not_run(
    console_url: str,
) -> None:
    async with browsing() as page:
        await log_in(page, console_url)
        await page.goto(f"{console_url}/?conversation=evil")
        await page.get_by_text(SCRIPT).nth(1).wait_for()
        assert await page.evaluate("window.hacked") is None
        await page.goto(f"{console_url}/models")
        await page.get_by_text("Show the whole report").click()
        inner = page.frame_locator("iframe").frame_locator("iframe")
        await inner.get_by_text("Report of v4").wait_for()
        for frame in page.frames:
            assert await frame.evaluate("window.hacked") is None


async def test_no_payload_of_the_corpus_becomes_anything_but_text(console_url: str) -> None:
    """Canaries are fetched from canary.example, or set as ``window.canary``."""
    async with browsing() as page:
        fetched: list[str] = []
        page.on("request", lambda asked: fetched.append(asked.url))
        await log_in(page, console_url)
        await page.get_by_role("button", name="Log out").wait_for()  # and the list is there
        await page.goto(f"{console_url}/?conversation=corpus")
        said = page.get_by_test_id("stChatMessage")
        await said.nth(1).wait_for()
        for text in await said.all_inner_texts():
            assert [payload for payload in PLAIN if payload not in text] == []
        for frame in page.frames:
            assert not await frame.evaluate("'canary' in window")
        assert [url for url in fetched if "canary" in url] == []


async def test_a_curve_moves_by_itself_and_a_double_click_makes_one_run(
    console_url: str, world: World
) -> None:
    async with browsing() as page:
        await log_in(page, console_url)
        await page.goto(f"{console_url}/training")
        await page.get_by_text("Step 30 of 120").first.wait_for()
        run = world.runs[0]
        world.train_step(run, 31)
        await page.get_by_text("Step 31 of 120").first.wait_for()
        run.update(state="completed", version_id="v5", ended_at=run["started_at"] + 1000)
        await page.get_by_role("button", name="Start training").dblclick()
        await page.get_by_text("Waiting for the trainer · started by").wait_for()
        assert [run["state"] for run in world.runs] == ["queued", "completed"]


COLOURS = """() => {
  const style = getComputedStyle(document.querySelector('.stApp'));
  return [style.backgroundColor, style.color];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_console_is_as_light_or_dark_as_the_browser_asks(
    console_url: str, scheme: Literal["light", "dark"]
) -> None:
    async with browsing(scheme) as page:
        await log_in(page, console_url)
        await page.get_by_role("button", name="Log out").wait_for()
        ground, text = (
            sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in await page.evaluate(COLOURS)
        )
        assert (ground > text) is (scheme == "light")
        assert abs(ground - text) > 500  # of 765
