"""A visitor whose chat is open is erased: nothing stays in the browser, and the chat goes on."""

from playwright.async_api import expect

from chatbot.rights.erasure import Eraser
from chatbot.rights.people import Person
from tests.browser.stage import PIECES, REPLY, Stage


async def test_an_open_chat_forgets_its_visitor_and_begins_anew(stage: Stage) -> None:
    services = stage.server.services
    chat = await stage.chat()
    await chat.send("My secret")
    stage.release(len(PIECES))
    await chat.expect_reply(REPLY)
    head = await stage.head()
    stored = "JSON.stringify(localStorage) + JSON.stringify(sessionStorage)"
    assert head.visitor in await chat.in_frame(stored)
    eraser = Eraser(services.database, services.log, services.runs, services.settings.data_dir)
    await eraser.erase(Person(head.site, head.visitor), actor="ada", reason="asked")
    await expect(chat.frame.get_by_text("My secret")).to_have_count(0)
    await expect(chat.replies).to_have_count(0)
    kept = await chat.in_frame(stored)
    assert head.visitor not in kept
    assert head.conversation_id not in kept
    await chat.send("Hello again")
    stage.release(len(PIECES))
    await chat.expect_reply(REPLY)
    assert await stage.texts() == ["Hello again"]
    assert (await stage.head()).visitor != head.visitor
