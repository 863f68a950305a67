"""A visitor's chat in Chromium, on a page of another origin."""

from playwright.async_api import expect

from tests.browser.stage import PIECES, REPLY, Stage
from tests.chatbot.server.room import until


async def test_a_reply_streams_piece_by_piece(stage: Stage) -> None:
    chat = await stage.chat()
    await chat.send("Where is my order?")
    await expect(chat.frame.locator(".typing")).to_be_attached()
    shown = ""
    for piece in PIECES[:-1]:
        stage.release()
        shown += piece
        await chat.expect_reply(shown)
    await expect(chat.frame.locator(".from-bot.live")).to_have_attribute("aria-busy", "true")
    await expect(chat.stop).to_be_visible()
    stage.release()
    await chat.expect_reply(REPLY)
    await expect(chat.stop).to_be_hidden()
    assert await stage.texts() == ["Where is my order?"]
    assert [event["role"] for event in await chat.events("message")] == ["visitor", "bot"]
    assert await chat.page.evaluate("window.shifts") == 0


async def test_a_reload_in_the_middle_loses_and_repeats_nothing(stage: Stage) -> None:
    chat = await stage.chat()
    await chat.send("Where is my order?")
    for upto in range(1, len(PIECES)):
        stage.release()
        await chat.expect_reply("".join(PIECES[:upto]))
        await chat.page.reload()  # the panel stays open: the tab remembers it
        await chat.expect_reply("".join(PIECES[:upto]))
    stage.release()
    await chat.expect_reply(REPLY)
    await expect(chat.replies).to_have_count(1)
    await expect(chat.frame.locator(".from-visitor .bubble")).to_have_text(["Where is my order?"])
    assert await stage.texts("reply.completed") == [REPLY]
    assert stage.worker.outcomes == ["written"]


async def test_the_socket_cut_at_every_piece_loses_and_repeats_nothing(stage: Stage) -> None:
    chat = await stage.chat()
    await chat.send("Where is my order?")
    for upto in range(1, len(PIECES) + 1):
        stage.release()
        await chat.expect_reply("".join(PIECES[:upto]))
        stage.network.cut()
    await chat.expect_reply(REPLY)
    await expect(chat.replies).to_have_count(1)


async def test_stop_stops_and_keeps_what_was_said(stage: Stage) -> None:
    chat = await stage.chat()
    await chat.send("Where is my order?")
    stage.release(3)
    said = "".join(PIECES[:3])
    await chat.expect_reply(said)
    await chat.stop.click()
    await expect(chat.frame.locator(".from-bot .tag", has_text="Stopped")).to_be_visible()
    await chat.expect_reply(said)
    [ended] = [event for event in await stage.events() if event.type == "reply.completed"]
    assert (ended.data["text"], ended.data["finish_reason"]) == (said, "stopped")
    await chat.page.reload()
    await expect(chat.frame.locator(".from-bot .tag", has_text="Stopped")).to_be_visible()
    await chat.expect_reply(said)
    await until(lambda: bool(stage.worker.outcomes))
    assert stage.worker.outcomes == ["lost"]  # the worker was told, too


async def test_only_a_reply_that_reached_its_longest_length_is_cut_short(stage: Stage) -> None:
    chat = await stage.chat()
    await chat.send("Where is my order?")
    stage.release(2)
    await chat.expect_reply("".join(PIECES[:2]))
    await chat.stop.click()
    tags = chat.frame.locator(".from-bot .tag")
    await expect(tags).to_have_text(["Stopped"])
    await until(lambda: stage.worker.outcomes == ["lost"])
    stage.worker.finish = "length"
    await chat.send("And now?")
    stage.release(len(PIECES))
    await expect(tags).to_have_text(["Stopped", "Cut short"])


async def test_two_tabs_are_in_step(stage: Stage) -> None:
    context = await stage.visitor()
    first = await stage.chat(context)
    second = await stage.chat(context)
    await first.send("From the first tab")
    stage.release(2)
    for tab in (first, second):
        await expect(tab.frame.locator(".from-visitor .bubble")).to_have_text("From the first tab")
        await tab.expect_reply("".join(PIECES[:2]))
    await second.stop.click()
    for tab in (first, second):
        await expect(tab.frame.locator(".from-bot .tag")).to_have_text("Stopped")
    await until(lambda: bool(stage.worker.outcomes))  # the stopped reply takes no piece any more
    await second.send("From the second tab")
    stage.release(len(PIECES))
    for tab in (first, second):
        await tab.expect_reply(REPLY)
        await expect(tab.frame.locator(".from-visitor .bubble")).to_have_text(
            ["From the first tab", "From the second tab"]
        )


async def test_a_new_chat_in_one_tab_takes_the_other_along(stage: Stage) -> None:
    context = await stage.visitor()
    first = await stage.chat(context)
    await first.send("The old chat")
    stage.release(len(PIECES))
    await first.expect_reply(REPLY)
    second = await stage.chat(context)
    await second.expect_reply(REPLY)
    old = await stage.head()
    await stage.server.services.log.change_status(
        old.conversation_id, "closed", reason="solved", actor="anna"
    )
    for tab in (first, second):
        await expect(tab.frame.get_by_text("How did we do?")).to_be_visible()
    await first.frame.get_by_title("4 of 5").click()
    await first.frame.get_by_label("Comment").fill("quick")
    await first.frame.get_by_role("button", name="Send rating").click()
    await expect(second.frame.get_by_text("Thank you for telling us.")).to_be_visible()
    ratings = [
        event.data
        for event in await stage.events(old.conversation_id)
        if event.type == "rating.given"
    ]
    assert ratings == [{"score": 4, "comment": "quick"}]
    await first.frame.get_by_role("button", name="Start a new chat").click()
    for tab in (first, second):
        await expect(tab.text).to_be_visible()
        await expect(tab.frame.locator(".from-visitor")).to_have_count(0)
    await second.send("The new chat")
    await expect(first.frame.locator(".from-visitor .bubble")).to_have_text("The new chat")
    assert (await stage.head()).conversation_id != old.conversation_id


async def test_without_storage_the_chat_works_for_the_life_of_the_page(stage: Stage) -> None:
    # Chromium under test refuses storage to frames of another site
    chat = await stage.chat(url=stage.website.other_site_url)
    refused = await chat.in_frame(
        "{ try { localStorage.length; return false; } catch { return true; } }"
    )
    assert refused
    await chat.send("Hello")
    stage.release(len(PIECES))
    await chat.expect_reply(REPLY)


async def test_a_token_that_is_not_valid_any_more_is_replaced(stage: Stage) -> None:
    chat = await stage.chat()
    await chat.in_frame("localStorage.setItem('frontdesk:demo:token', '\"not.a.token\"')")
    await chat.page.reload()
    await chat.send("Hello")
    stage.release(len(PIECES))
    await chat.expect_reply(REPLY)
    first = await stage.head()
    # again, now with words on their way: they are not lost with the old token
    stage.network.refusing = True
    stage.network.cut()
    await chat.send("On its way")
    await chat.in_frame("localStorage.setItem('frontdesk:demo:token', '\"not.a.token\"')")
    stage.network.refusing = False
    await chat.page.reload()
    await expect(chat.frame.locator(".from-visitor:not(.pending) .bubble")).to_have_text(
        "On its way"
    )
    [second] = [
        head
        for head in await stage.server.services.log.open_conversations()
        if head.conversation_id != first.conversation_id
    ]
    assert second.visitor != first.visitor
