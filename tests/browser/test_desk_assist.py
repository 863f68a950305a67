"""Drafts on the agent's page, by key."""

from dataclasses import replace

from playwright.async_api import expect

from chatbot.assist.board import AssistBoard, DraftSet
from chatbot.assist.drafts import Draft
from tests.browser.stage import Stage
from tests.browser.test_desk_team import violations

PAST = Draft("p0", "Which order is it?", "past", 0.7, "c-0")
OWN = Draft("m0", "We will look into it.", "model", 0.4, "v1")
BASE = Draft("m0", "Plants are plants.", "model", 0.82, "base-smollm2-135m")
BAD = Draft("p1", "<img src=x onerror='alert(1)'> **bold**", "past", 0.1, "c-9")


async def test_a_draft_of_the_bare_base_model_shows_no_percentage(stage: Stage) -> None:
    board = AssistBoard(stage.server.services.redis)
    chat = await stage.chat()
    await chat.send("Where is my parcel?")
    desk = await stage.desk("anna")
    await desk.open_first()
    await desk.claim.click()
    await expect(desk.page.get_by_text("Drafting…")).to_be_visible()
    head = await stage.head()
    drafts = (PAST, replace(BASE, agreed=True), BASE)
    await board.put(head.conversation_id, DraftSet("s1", head.asked, BASE.origin, drafts, True))
    await expect(desk.page.locator(".draft .muted")).to_have_text(
        [
            "said in c-0 · 70 % sure",
            "written by the untuned base model, as people said before",
            "written by the untuned base model",
        ]
    )


async def test_drafts_are_sent_edited_turned_down_and_withdrawn(stage: Stage) -> None:
    board = AssistBoard(stage.server.services.redis)
    chat = await stage.chat()
    await chat.send("Where is my parcel?")
    desk = await stage.desk("anna")
    await desk.open_first()
    await desk.claim.click()
    await expect(desk.page.get_by_text("Drafting…")).to_be_visible()
    head = await stage.head()
    await board.put(head.conversation_id, DraftSet("s1", head.asked, "v1", (PAST, OWN, BAD), True))
    drafts = desk.page.locator(".draft")
    await expect(drafts.locator("p")).to_have_text([PAST.text, OWN.text, BAD.text])
    await expect(drafts.nth(0)).to_contain_text("said in c-0 · 70 % sure")
    await expect(drafts.nth(1)).to_contain_text("written by v1 · 40 % sure")
    assert await violations(desk.page) == []

    keys = desk.page.keyboard
    await keys.press("d")
    await expect(drafts.nth(0)).to_be_focused()
    await keys.press("ArrowDown")
    await keys.press("Delete")
    await expect(drafts.locator("p")).to_have_text([PAST.text, BAD.text])
    await chat.send("It was order 7")  # moves on: they go
    await expect(drafts).to_have_count(0)

    head = await stage.head()
    await board.put(head.conversation_id, DraftSet("s2", head.asked, "v1", (PAST, OWN), True))
    await expect(drafts).to_have_count(2)
    await keys.press("e")
    await expect(desk.text).to_have_value(PAST.text)
    await keys.type(" Number 7?")
    await keys.press("Enter")
    await expect(chat.frame.locator(".from-agent .bubble")).to_have_text(
        "Which order is it? Number 7?"
    )
    await expect(drafts).to_have_count(0)

    await chat.send("Yes")
    head = await stage.head()
    await expect(desk.page.get_by_text("Drafting…")).to_be_visible()
    head = await stage.head()
    await board.put(head.conversation_id, DraftSet("s3", head.asked, "v1", (OWN,), True))
    await expect(drafts).to_have_count(1)
    await keys.press("Escape")
    await keys.press("a")
    await expect(chat.frame.locator(".from-agent .bubble").last).to_have_text(OWN.text)
    summary = desk.page.locator("#summary")
    await expect(summary).to_contain_text("Where is my parcel?")
    await expect(summary).to_contain_text("Nothing: the last message was answered")

    fates = [
        (event.type, event.data.get("suggestions_id") or event.data["suggestion"]["suggestions_id"])
        for event in await stage.events()
        if event.type.startswith("suggestion") or event.data.get("suggestion")
    ]
    assert fates == [
        ("suggestions.shown", "s1"),
        ("suggestion.rejected", "s1"),
        ("suggestions.shown", "s2"),
        ("message.created", "s2"),
        ("suggestions.shown", "s3"),
        ("message.created", "s3"),
    ]
