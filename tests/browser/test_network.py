"""Bad networks: offline, cut, one-way. Nothing is lost, nothing is doubled, and it is said."""

import re
from contextlib import suppress

from playwright.async_api import Route, expect

from chatbot.errors import RateLimited
from chatbot.server.limits import RateLimiter
from tests.browser.stage import PIECES, REPLY, Stage


async def test_offline_is_shown_and_words_are_sent_once_when_it_ends(stage: Stage) -> None:
    context = await stage.visitor()
    chat = await stage.chat(context)
    await chat.send("Before")
    stage.release(len(PIECES))
    await chat.expect_reply(REPLY)
    stage.network.refusing = True
    await context.set_offline(True)
    stage.network.cut()
    await expect(chat.banner).to_contain_text("You are offline")
    await chat.send("Written in a tunnel")
    await expect(chat.frame.get_by_text("Waiting for the connection…")).to_be_visible()
    assert await stage.texts() == ["Before"]
    stage.network.refusing = False
    await context.set_offline(False)  # the browser says so: no waiting for the back-off
    stage.release(len(PIECES))
    await expect(chat.banner).to_be_hidden()
    await expect(chat.frame.get_by_text("Waiting for the connection…")).to_be_hidden()
    await expect(chat.replies).to_have_count(2)
    assert await stage.texts() == ["Before", "Written in a tunnel"]


async def test_words_written_offline_survive_a_reload(stage: Stage) -> None:
    chat = await stage.chat()
    await chat.send("Before")
    stage.release(len(PIECES))
    await chat.expect_reply(REPLY)
    stage.network.hold()
    await chat.send("Nobody confirms this")
    await expect(chat.frame.locator(".pending")).to_have_count(1)
    stage.network.flow()
    await chat.page.reload()
    await expect(chat.frame.locator(".from-visitor:not(.pending)")).to_have_count(2)
    assert await stage.texts() == ["Before", "Nobody confirms this"]


async def test_a_server_that_is_away_is_tried_again_on_demand(stage: Stage) -> None:
    chat = await stage.chat()
    await chat.send("Before")
    stage.release(len(PIECES))
    await chat.expect_reply(REPLY)
    stage.network.refusing = True
    stage.network.cut()
    await expect(chat.banner).to_contain_text(re.compile(r"No connection\. Trying again in \d+ s"))
    stage.network.refusing = False
    await chat.frame.get_by_role("button", name="Try now").click()
    await expect(chat.banner).to_be_hidden()


async def test_a_socket_that_hears_nothing_is_given_up(stage: Stage) -> None:
    chat = await stage.chat()
    await chat.send("Where is my order?")
    stage.release(2)
    await chat.expect_reply("".join(PIECES[:2]))
    connections = stage.network.connections
    stage.network.deafen()  # it can send but never receive, and looks open
    stage.release(len(PIECES))
    await chat.in_frame("window.dispatchEvent(new Event('online'))")  # as after a sleep
    await chat.expect_reply(REPLY)
    assert stage.network.connections > connections


async def test_a_message_into_a_half_open_socket_arrives_once(stage: Stage) -> None:
    chat = await stage.chat()
    await chat.send("Before")
    stage.release(2 * len(PIECES))
    await chat.expect_reply(REPLY)
    stage.network.deafen()
    await chat.send("Into the void")  # it arrives, but its acknowledgement never comes
    await expect(chat.frame.locator(".from-visitor:not(.pending)")).to_have_count(2)
    await expect(chat.frame.locator(".pending")).to_have_count(0)
    assert await stage.texts() == ["Before", "Into the void"]


async def test_a_message_that_is_too_long_stays_in_the_field(stage: Stage) -> None:
    chat = await stage.chat()
    await expect(chat.frame.locator(".from-bot")).to_have_count(1)  # the settings are there
    length = chat.frame.locator("#length")
    await chat.text.fill("🌿" * 240_000)
    await expect(length).to_have_text("240,000 of at most 8,000 characters")
    await expect(chat.frame.get_by_role("button", name="Send")).to_be_disabled()
    await chat.text.press("Enter")
    await expect(chat.banner).to_contain_text("at most 8,000 characters are allowed")
    await expect(chat.text).to_have_value("🌿" * 240_000)
    await expect(chat.frame.locator(".from-visitor")).to_have_count(0)
    await chat.text.fill("🌿" * 8_000)  # counted as the server counts
    await expect(length).to_have_text("8,000 of at most 8,000 characters")
    await chat.text.press("Enter")
    await expect(length).to_be_hidden()
    await expect(chat.banner).to_be_hidden(timeout=2000)  # it said so of another text
    stage.release(len(PIECES))
    await expect(chat.replies).to_have_count(1)
    assert await stage.texts() == ["🌿" * 8_000]


async def test_a_refused_message_goes_back_into_the_field(stage: Stage) -> None:
    chat = await stage.chat()
    await chat.send("A\0B")  # which no database keeps
    failed = chat.frame.locator(".failed")
    await expect(failed.locator(".tag")).to_have_text("This message could not be taken.")
    await expect(failed.get_by_role("button", name="Retry")).to_have_count(0)
    await chat.text.fill("and more")
    await failed.get_by_role("button", name="Edit").click()
    await expect(chat.text).to_have_value("A\0B\nand more")
    await expect(chat.text).to_be_focused()
    await expect(failed).to_have_count(0)
    await chat.send("Shorter")
    stage.release(len(PIECES))
    await expect(chat.replies).to_have_count(1)
    assert await stage.texts() == ["Shorter"]


async def test_a_frame_too_large_for_the_server_is_not_sent_for_ever(stage: Stage) -> None:
    async def without_limit(route: Route) -> None:
        response = await route.fetch()
        body = await response.json()
        body["site"]["max_chars"] = 0
        await route.fulfill(response=response, json=body)

    context = await stage.visitor()
    await context.route("**/v1/visitors", without_limit)
    chat = await stage.chat(context)
    await chat.send("Before")
    stage.release(len(PIECES))
    await chat.expect_reply(REPLY)
    await chat.send("z" * 8_001)
    failed = chat.frame.locator(".failed")
    await expect(failed.locator(".tag")).to_have_text("This message is too long.")
    await failed.get_by_role("button", name="Edit").click()
    await expect(chat.text).to_have_value("z" * 8_001)
    await chat.send("y" * 200_000)
    await expect(failed.locator(".tag")).to_have_text("This message is too long.")
    await chat.send("Shorter")
    stage.release(len(PIECES))
    await expect(chat.replies).to_have_count(2)
    assert await stage.texts() == ["Before", "Shorter"]


async def test_too_many_messages_are_counted_down_and_sent_later(stage: Stage) -> None:
    # one more every ten seconds: long enough for the slowest page to be refused first
    room = stage.server.room
    room.message_rate = RateLimiter(room.services.redis, "messages_per_minute", 6)
    chat = await stage.chat()
    await chat.send("One")
    stage.release(len(PIECES))
    await chat.expect_reply(REPLY)
    subject = f"demo:{(await stage.head()).visitor}"
    with suppress(RateLimited):
        while True:
            await room.message_rate.take(subject, "messages")
    await chat.send("Two")
    await expect(chat.banner).to_contain_text(re.compile(r"Try again in \d+ s"))
    await expect(chat.frame.get_by_role("button", name="Retry")).to_be_visible()
    stage.release(len(PIECES))
    await expect(chat.replies).to_have_count(2)  # by itself, when the time has come
    assert await stage.texts() == ["One", "Two"]
