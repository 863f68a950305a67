"""Agents together, in Chromium: presence, handing over, tags, canned replies, the help, and what
a screen reader needs."""

import json
import re
from pathlib import Path

import axe_playwright_python
import pytest
from playwright.async_api import Page, expect

from chatbot.server.auth import signer_of
from chatbot.server.staff import create_staff
from tests.browser.stage import PASSWORD, Desk, Stage

ROOT = Path(__file__).parents[2]
AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"


async def violations(page: Page) -> list[str]:
    """What axe-core finds wrong. Run in the driver's world: the page's policy allows no script."""
    await page.evaluate(AXE.read_text())
    found = await page.evaluate("axe.run().then(({violations}) => JSON.stringify(violations))")
    return [
        f"{rule['id']}: {[node['html'] for node in rule['nodes']][:3]}"
        for rule in json.loads(found)
    ]


async def test_agents_see_each_other_and_hand_over_by_key(stage: Stage) -> None:
    chat = await stage.chat()
    await chat.send("Where is my refund?")
    anna = await stage.desk("anna")
    ben = await stage.desk("ben")
    await expect(anna.page.locator("#online").get_by_role("img")).to_have_text(["be"])
    await ben.open_first()
    viewer = anna.rows.first.get_by_role("img", name="ben has it open")
    await expect(viewer).to_be_visible()
    await anna.open_first()
    await expect(anna.page.locator("#viewers").get_by_role("img")).to_have_text(["be"])

    await anna.page.keyboard.press("c")
    await expect(anna.page.locator("#substatus")).to_have_text("You hold it; the bot is silent")
    await anna.page.keyboard.press("t")
    dialog = anna.page.get_by_role("dialog", name="Hand this conversation over")
    await expect(dialog.get_by_label("To")).to_be_focused()
    await dialog.get_by_label("What they should know").fill("refund of order 7")
    await anna.page.keyboard.press("Enter")
    await expect(anna.page.locator("#substatus")).to_have_text("ben holds it")
    await expect(anna.text).to_be_disabled()
    said = "anna handed over to ben: refund of order 7"
    await expect(ben.log.get_by_text(said)).to_be_visible()
    await expect(ben.text).to_be_enabled()
    await expect(chat.frame.locator("#presence")).to_have_text("ben is here")
    await ben.page.keyboard.press("4")
    await expect(ben.rows).to_have_count(1)
    await anna.page.keyboard.press("4")
    await expect(anna.page.get_by_text("You hold no conversation")).to_be_visible()


async def test_tags_by_key(stage: Stage) -> None:
    chat = await stage.chat()
    await chat.send("Where is my refund?")
    desk = await stage.desk("anna")
    await desk.open_first()
    await expect(desk.claim).to_be_enabled()
    await desk.page.keyboard.press("g")
    await expect(desk.page.get_by_label("Add a tag")).to_be_focused()
    await desk.page.keyboard.type("Refund")
    await desk.page.keyboard.press("Enter")
    await expect(desk.page.locator("#tags .chip span")).to_have_text(["refund"])
    await expect(desk.rows.first.locator(".chip")).to_have_text(["refund"])
    await desk.page.get_by_role("button", name="Remove tag refund").click()
    await expect(desk.page.locator("#tags .chip")).to_have_count(0)
    await expect(desk.rows.first.locator(".chip")).to_have_count(0)


async def test_a_canned_reply_is_kept_and_its_blanks_are_filled(stage: Stage) -> None:
    chat = await stage.chat()
    await chat.send("I want my money back")
    services = stage.server.services
    create_staff(services.database, "test", "rae", PASSWORD, "reviewer")
    desk = await stage.desk("rae", known=True)
    keys = desk.page.keyboard
    await keys.press("m")
    dialog = desk.page.get_by_role("dialog", name="Canned replies")
    await dialog.get_by_label("Shortcut").fill("refund")
    await dialog.get_by_label("Text").fill("I am {{agent}}. Your {{amount}} come by {{date}}.")
    await dialog.get_by_role("button", name="Save").click()
    await expect(dialog.locator("#canned-all li")).to_have_count(1)
    await keys.press("Escape")
    await desk.open_first()
    await desk.claim.click()
    await expect(desk.text).to_be_enabled()
    await keys.press("/")
    await keys.type("ref")
    await expect(desk.page.get_by_role("option")).to_have_count(1)
    await keys.press("Enter")
    await expect(desk.text).to_have_value("I am rae. Your {{amount}} come by {{date}}.")
    await keys.type("20 euros")
    await keys.press("Enter")  # a blank is left: nothing is sent, and it is selected
    await keys.type("Friday")
    await keys.press("Enter")
    await expect(chat.frame.locator(".from-agent .bubble")).to_have_text(
        "I am rae. Your 20 euros come by Friday."
    )


async def test_the_help_lists_every_key_and_so_does_the_guide(stage: Stage) -> None:
    desk = await stage.desk("anna")
    await desk.page.keyboard.press("?")
    rows = desk.page.locator("#keys dt")
    await expect(rows.first).to_be_visible()
    shown = await rows.evaluate_all(
        "nodes => nodes.map(node => [...node.children].map(key => key.textContent).join(' '))"
    )
    meanings = await desk.page.locator("#keys dd").all_inner_texts()
    guide = (ROOT / "docs" / "desk.md").read_text()
    rows_of_guide = re.findall(r"^\| (`.+?`) \| (.+?) \|$", guide, re.MULTILINE)
    written = {(" ".join(re.findall(r"`(.+?)`", keys)), does) for keys, does in rows_of_guide}
    assert set(zip(shown, meanings, strict=True)) == written


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(stage: Stage, scheme: str) -> None:
    chat = await stage.chat()
    await chat.send("I need help")
    token = stage.staff("ben")
    assert signer_of(stage.server.services).read_staff(token)
    context = await stage.visitor(
        color_scheme=scheme, reduced_motion="reduce", viewport={"width": 1360, "height": 820}
    )
    page = await context.new_page()
    await page.goto(f"{stage.network.url}/desk")
    assert await violations(page) == []
    await page.evaluate(
        "token => sessionStorage.setItem('frontdesk:desk:token', `\"${token}\"`)", token
    )
    await page.reload()
    desk = Desk(page)
    await expect(desk.rows).to_have_count(1)
    assert await violations(page) == []
    await desk.open_first()
    await desk.claim.click()
    await expect(desk.text).to_be_enabled()
    await desk.page.get_by_label("Add a tag").fill("vip")
    await desk.page.keyboard.press("Enter")
    await expect(page.locator("#tags .chip")).to_have_count(1)
    await page.get_by_role("button", name="Private note").click()
    await desk.send("A note")
    await expect(desk.log.locator(".from-note")).to_have_count(1)
    assert await violations(page) == []
    for key in ("?", "m", "t", "x"):
        await page.keyboard.press("Escape")
        await expect(page.locator("dialog[open]")).to_have_count(0)
        await expect(desk.text).not_to_be_focused()
        await page.keyboard.press(key)
        await expect(page.locator("dialog[open]")).to_have_count(1)
        assert await violations(page) == []
