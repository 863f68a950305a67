"""Every state of the chat in every look of it: axe-core finds nothing, nothing sticks out of the
frame. With FRONTDESK_TEST_PICTURES (a folder) a picture of each is kept, to be looked at."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import axe_playwright_python
import pytest
from playwright.async_api import expect

from tests.browser.stage import REPLY, Chat, Stage
from tests.browser.test_widget import CLOSED, claim, say

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
PICTURES = os.environ.get("FRONTDESK_TEST_PICTURES", "")
MARKDOWN = (
    "Your order **4711** is on its way:\n\n- sent on *Monday*\n- `DHL 00340434`\n\n"
    "1. Open https://shop.example/track\n2. Enter the number\n\n```\ncode, too\n```"
)
LOOKS: dict[str, dict[str, Any]] = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone": {
        "viewport": {"width": 390, "height": 760},
        "has_touch": True,
        "is_mobile": True,
    },
    "arabic": {"locale": "ar"},
    "yellow": {},  # a color on which white cannot be read
}


class Looker:
    """Takes one look after the other at a chat."""

    def __init__(self, look: str, chat: Chat) -> None:
        self.look = look
        self.chat = chat
        self.found: list[str] = []

    async def at(self, state: str) -> None:
        frame = self.chat.page.frame_locator("frontdesk-widget iframe").locator("html")
        await frame.evaluate(AXE)
        report = await frame.evaluate(
            "() => axe.run(document, {resultTypes: ['violations'], iframes: false})"
        )
        self._note(state, report)
        sticks_out = "(node) => node.scrollWidth > node.clientWidth"
        if await frame.evaluate(sticks_out):
            self.found.append(f"{state}: something sticks out")
        await self._picture(state)

    async def page(self, state: str) -> None:
        """The launcher and the panel on the customer's page."""
        await self.chat.page.evaluate(AXE)
        report = await self.chat.page.evaluate(
            "() => axe.run('frontdesk-widget', {resultTypes: ['violations'], iframes: false})"
        )
        self._note(state, report)
        await self._picture(state)

    def _note(self, state: str, report: dict[str, Any]) -> None:
        for violation in report["violations"]:
            nodes = "; ".join(
                f"{node['target']}: {node['failureSummary']}" for node in violation["nodes"]
            )
            self.found.append(f"{state}: {violation['id']}: {nodes}")

    async def _picture(self, state: str) -> None:
        if PICTURES:
            name = Path(PICTURES) / f"{self.look}-{state}.png"
            await self.chat.page.screenshot(path=name)


@pytest.mark.parametrize("look", LOOKS)
async def test_axe_finds_nothing_in_any_state(lobby: Stage, look: str) -> None:
    lobby.set_site(
        title="Juniper & Pine",
        welcome="",
        quick_replies=["Where is my order?", "I want to return something"],
        consent=True,
        privacy_url="https://shop.example/privacy",
    )
    color = "#ffe14d" if look == "yellow" else "#2f6f4f"
    lobby.website.attributes = f'data-site="demo" data-color="{color}"'
    lobby.worker.pieces[:] = [MARKDOWN]
    context = await lobby.visitor(reduced_motion="reduce", **LOOKS[look])
    chat = await lobby.chat(context, opened=False)
    looker = Looker(look, chat)
    await looker.page("closed")
    await chat.page.evaluate("frontdesk.open()")
    for part in (_beginning, _talk, _people, _trouble, _end):
        await part(lobby, chat, looker.at)
    await chat.page.evaluate("frontdesk.close()")
    await looker.page("closed-again")
    assert looker.found == []


At = Callable[[str], Awaitable[None]]


async def _beginning(stage: Stage, chat: Chat, at: At) -> None:
    agree = chat.frame.locator("#agree")
    await expect(agree).to_be_visible()
    await at("consent")
    await agree.click()
    await expect(chat.frame.locator("#replies")).to_be_visible()
    await at("empty")


async def _talk(stage: Stage, chat: Chat, at: At) -> None:
    field = chat.frame.locator("#text")
    await field.fill("Where is my order 4711? I have been waiting for a week now.")
    await field.press("Enter")
    await expect(chat.frame.locator(".from-bot pre")).to_be_visible()
    await at("reply")
    await chat.frame.locator("#more").click()
    await expect(chat.frame.locator("#menu")).to_be_visible()
    await at("menu")
    await chat.page.keyboard.press("Escape")


async def _people(stage: Stage, chat: Chat, at: At) -> None:
    await chat.frame.locator("#person").click()
    await expect(chat.frame.locator("#waiting-text")).not_to_be_empty()
    await at("waiting")
    await chat.frame.locator("#leave").click()
    await chat.frame.locator("#contact .primary").click()
    await expect(chat.frame.locator("#contact-error")).not_to_be_empty()
    await at("form")
    await chat.frame.locator("#contact-back").click()
    conversation = await chat.conversation()
    await claim(stage, conversation)
    await say(stage, conversation, "Hello, I am Anna. Let me look.")
    await expect(chat.frame.locator(".from-agent")).to_have_count(1)
    await at("person")


async def _trouble(stage: Stage, chat: Chat, at: At) -> None:
    await chat.frame.locator("#text").fill("x" * 8001)
    await chat.frame.locator("#text").press("Enter")
    await expect(chat.banner).to_be_visible()
    await at("too-long")
    await chat.frame.locator("#text").fill("no database keeps \0 this")
    await chat.frame.locator("#text").press("Enter")
    await expect(chat.frame.locator(".failed")).to_be_visible()
    await at("refused")
    stage.network.refusing = True
    stage.network.cut()
    await expect(chat.frame.locator("#banner-action")).to_be_visible()
    await at("offline")
    stage.network.refusing = False
    await chat.in_frame("window.dispatchEvent(new Event('online'))")
    await expect(chat.banner).to_be_hidden()


async def _end(stage: Stage, chat: Chat, at: At) -> None:
    await stage.server.services.log.change_status(
        await chat.conversation(), "closed", reason="solved", actor="anna"
    )
    stars = chat.frame.locator("#stars")
    await expect(stars).to_be_visible()
    await stars.locator("label").nth(3).click()
    await expect(chat.frame.locator("#rating-more")).to_be_visible()
    await at("rating")
    await chat.frame.locator("#rating-more .secondary").click()
    await expect(chat.frame.locator("#thanks")).to_be_visible()
    await at("rated")


async def test_axe_finds_nothing_where_nobody_answers(lobby: Stage) -> None:
    lobby.set_site(title="Demo", welcome="", **CLOSED)
    # what is still fading in has too little contrast
    chat = await lobby.chat(await lobby.visitor(reduced_motion="reduce"))
    await chat.send("Hello")
    await chat.expect_reply(REPLY)
    looker = Looker("closed", chat)
    await chat.frame.locator("#person").click()
    await expect(chat.frame.locator("#contact-lead")).not_to_be_empty()
    await looker.at("form")
    await chat.frame.get_by_label("E-mail address").fill("ada@shop.example")
    await chat.frame.locator("#contact").get_by_label("Message").fill("My parcel is lost")
    await chat.frame.locator("#contact .primary").click()
    await expect(chat.banner).to_be_visible()
    await looker.at("sent")
    assert looker.found == []
