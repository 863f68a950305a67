"""Our own pages, opened as pages: nothing that they ask for is missing."""

import pytest
from playwright.async_api import expect

from tests.browser.stage import Stage


@pytest.mark.parametrize("path", ["/", "/desk", "/widget/chat.html?site=demo", "/assist?site=demo"])
async def test_a_page_asks_for_nothing_that_is_not_there(stage: Stage, path: str) -> None:
    context = await stage.visitor()
    page = await context.new_page()
    errors: list[str] = []
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(f"{stage.network.url}{path}", wait_until="networkidle")
    icon = page.locator("link[rel=icon]")
    await expect(icon).to_have_count(1)  # or browsers ask for /favicon.ico
    answer = await page.request.get(await icon.evaluate("(link) => link.href"))
    assert answer.status == 200
    assert answer.headers["content-type"] == "image/svg+xml"
    assert errors == []
    assert all(url.startswith(stage.network.url) for url in asked)
