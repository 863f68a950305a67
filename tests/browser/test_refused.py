"""A page on which the frame does not load: no broken panel, and a warning that names the cause."""

import pytest
from playwright.async_api import BrowserContext, Page, expect

from chatbot.record.tables import Site
from tests.browser.stage import Stage

FAILED = """() => new Promise((done) => {
  const found = window.seen.find(([name]) => name === 'error');
  if (found) done(found[1]);
  else window.addEventListener('frontdesk:error', ({detail}) => done(detail), {once: true});
})"""


async def _error(page: Page) -> dict[str, str]:
    error: dict[str, str] = await page.evaluate(FAILED)
    return error


async def _no_panel(page: Page) -> None:
    await expect(page.locator(".launcher")).to_be_hidden()
    await page.evaluate("frontdesk.open()")
    assert await page.evaluate("frontdesk.isOpen") is False
    await expect(page.locator(".panel")).to_be_hidden()


async def _visit(stage: Stage, context: BrowserContext) -> Page:
    page = await context.new_page()
    await page.goto(stage.website.url)
    return page


def _list_nothing(stage: Stage) -> None:
    with stage.server.services.database.session() as session:
        site = session.get(Site, "demo")
        assert site is not None
        site.origins = ["https://shop.example"]


async def test_a_page_that_the_site_does_not_list_is_told_so(stage: Stage) -> None:
    _list_nothing(stage)
    stage.website.extra_policy = f"; connect-src {stage.network.url}"
    stage.website.attributes = 'data-site="demo" data-open'
    page = await _visit(stage, await stage.visitor())
    warnings: list[str] = []
    page.on("console", lambda message: warnings.append(message.text))
    error = await _error(page)
    assert error["code"] == "origin_refused"
    assert f'site "demo" does not list the origin {stage.website.url}' in error["message"]
    assert "console under Sites" in error["message"]
    assert "frame-src" not in error["message"]
    await _no_panel(page)
    assert any(error["message"] in warning for warning in warnings)


async def test_a_site_that_is_not_there_is_named(stage: Stage) -> None:
    stage.website.extra_policy = f"; connect-src {stage.network.url}"
    stage.website.attributes = 'data-site="shpo"'
    page = await _visit(stage, await stage.visitor())
    error = await _error(page)
    assert error["code"] == "unknown_site"
    assert 'there is no site "shpo"' in error["message"]
    await _no_panel(page)


async def test_a_page_whose_own_policy_refuses_the_frame_is_told_so(stage: Stage) -> None:
    stage.website.extra_policy = f"; connect-src {stage.network.url}"
    stage.website.frames = "'none'"
    page = await _visit(stage, await stage.visitor())
    error = await _error(page)
    assert error["code"] == "unreachable"
    assert "frame-src" in error["message"]
    assert "does not list" not in error["message"]
    await _no_panel(page)


@pytest.mark.parametrize("attributes", ['data-site="demo"', 'data-site="shpo"'])
async def test_where_the_page_allows_no_question_all_causes_are_named(
    stage: Stage, attributes: str
) -> None:
    _list_nothing(stage)
    stage.website.attributes = attributes
    page = await _visit(stage, await stage.visitor())
    error = await _error(page)
    assert error["code"] == "unreachable"
    causes = ["does not list the origin", "there is no site", "frame-src"]
    places = [error["message"].index(cause) for cause in causes]
    assert places == sorted(places)
    await _no_panel(page)


async def test_a_page_whose_frame_loads_asks_nothing(stage: Stage) -> None:
    context = await stage.visitor()
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    chat = await stage.chat(context)
    # longer than the script waits for a frame that has loaded; nothing to wait for tells it
    await chat.page.wait_for_timeout(2_500)
    assert not [url for url in asked if "embedding" in url]
    await expect(chat.text).to_be_visible()
    assert await chat.events("error") == []
