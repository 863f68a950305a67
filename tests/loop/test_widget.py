"""The widget on a page of another origin, in Chromium, with the real server, worker and model."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, async_playwright, expect

from bench.product import Product, free_port, running_product
from tests.browser.host import website
from tests.browser.stage import ARGUMENTS, Chat, loaded

pytestmark = [pytest.mark.loop, pytest.mark.model, pytest.mark.browser, pytest.mark.timeout(600)]

TOKENS = "120"
PATIENCE = 120_000.0  # ms, for a reply of so many tokens


def letters(text: str) -> str:
    """Letters alone: what Markdown leaves of a text however it is shown."""
    return "".join(re.findall(r"[^\W\d_]+", text))


async def allow(api: httpx.AsyncClient, origin: str) -> None:
    """Add an origin to the site ``demo``, as the console does."""
    [site] = (await api.get("/v1/admin/sites")).raise_for_status().json()["items"]
    body = {key: site[key] for key in ("title", "welcome", "system_prompt", "widget")}
    answer = await api.put("/v1/admin/sites/demo", json={**body, "origins": [origin]})
    assert answer.is_success, answer.text


async def replies(api: httpx.AsyncClient) -> list[dict[str, Any]]:
    """The finished replies of the only conversation, as the log has them."""
    [found] = (await api.get("/v1/admin/conversations")).raise_for_status().json()["items"]
    events = (await api.get(f"/v1/admin/conversations/{found['id']}")).json()["events"]
    return [event for event in events if event["type"] == "reply.completed"]


async def whole(page: Page, chat: Chat, number: int) -> str:
    """The text of reply ``number`` as it is shown when it has ended."""
    live = chat.frame.locator(".from-bot.live")
    await expect(chat.replies).to_have_count(number, timeout=PATIENCE)
    await expect(live).to_have_count(0, timeout=PATIENCE)
    return letters(await chat.replies.last.locator(".bubble").inner_text())


async def chatting(product: Product, api: httpx.AsyncClient, page: Page) -> None:
    await loaded(page)
    chat = Chat(page)
    await chat.open()
    await chat.send("Hello! Tell me everything about ferns, step by step.")
    bubble = chat.replies.last.locator(".bubble")
    await expect(bubble).to_contain_text(re.compile(r"\w+ \w+"), timeout=PATIENCE)
    before = letters(await bubble.inner_text())
    await page.reload()
    await loaded(page)
    shown = await whole(page, chat, 1)
    [first] = await replies(api)
    assert shown == letters(first["text"])  # nothing is lost, nothing is repeated
    assert shown.startswith(before)
    assert len(shown) > len(before), "the reply had ended before the reload"

    await chat.send("And now everything about cacti, please.")
    await expect(chat.replies).to_have_count(2, timeout=PATIENCE)
    await expect(chat.replies.last.locator(".bubble")).to_contain_text(
        re.compile(r"\w+ \w+"), timeout=PATIENCE
    )
    await chat.stop.click()
    shown = await whole(page, chat, 2)
    second = (await replies(api))[1]
    assert second["finish_reason"] == "stopped"
    assert shown == letters(second["text"])


async def test_a_reply_of_the_model_survives_a_reload_and_can_be_stopped(tmp_path: Path) -> None:
    environment = {"FRONTDESK_REPLY_MAX_TOKENS": TOKENS}
    async with running_product(tmp_path, free_port(), environment=environment) as product:
        headers = {"Authorization": f"Bearer {product.token}"}
        api = httpx.AsyncClient(base_url=product.url, headers=headers)
        with website(product.url) as site:
            async with api, async_playwright() as playwright:
                await allow(api, site.url)
                browser = await playwright.chromium.launch(
                    executable_path="/usr/bin/chromium", args=ARGUMENTS
                )
                page = await browser.new_page()
                await page.goto(site.url)
                await chatting(product, api, page)
                await browser.close()
