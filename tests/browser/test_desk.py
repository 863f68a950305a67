"""The agent's desk in Chromium, beside a visitor's chat."""

from playwright.async_api import expect

from tests.browser.stage import PIECES, REPLY, Stage


async def test_an_agent_takes_over_writes_and_gives_back(stage: Stage) -> None:
    chat = await stage.chat()
    desk = await stage.desk("anna")
    await expect(desk.page.get_by_text("New ones appear here by themselves")).to_be_visible()
    await chat.send("I need help")
    await expect(desk.rows).to_contain_text(["I need help"])
    await desk.open_first()
    stage.release(3)
    said = "".join(PIECES[:3])
    await expect(desk.log.locator(".from-bot.live .bubble")).to_have_text(said)
    await expect(desk.text).to_be_disabled()

    await desk.claim.click()
    await expect(chat.frame.get_by_text("anna joined the chat")).to_be_visible()
    await expect(chat.frame.locator("#presence")).to_have_text("anna is here")
    await chat.expect_reply(said)  # the bot ended where it was
    stage.release(len(PIECES))
    await desk.send("Hello, I am Anna.")
    await expect(chat.frame.locator(".from-agent .bubble")).to_have_text("Hello, I am Anna.")
    await chat.send("Good to see a person")
    await expect(desk.log.locator(".from-visitor .bubble").last).to_have_text(
        "Good to see a person"
    )
    assert len(stage.worker.replies) == 1  # no job for the bot
    await expect(chat.replies).to_have_count(1)
    await expect(chat.frame.locator(".typing")).to_have_count(0)

    await desk.page.get_by_role("button", name="Private note").click()
    await desk.send("Angry about DPD")
    await expect(desk.log.locator(".from-note .bubble")).to_have_text("Angry about DPD")
    await chat.send("Are you still there?")
    await expect(desk.log.locator(".from-visitor")).to_have_count(3)
    await expect(chat.frame.get_by_text("Angry about DPD")).to_have_count(0)

    await desk.release.click()
    stage.release(len(PIECES))
    await expect(chat.frame.get_by_text("The assistant is back")).to_be_visible()
    await expect(chat.replies).to_have_count(2)
    await chat.expect_reply(REPLY)
    await expect(desk.log.locator(".from-bot .bubble").last).to_have_text(REPLY)
    texts = [event["text"] for event in await chat.events("message")]
    assert "Angry about DPD" not in texts
    assert "Hello, I am Anna." in texts


async def test_talk_to_a_person_puts_the_chat_on_top_of_the_list(stage: Stage) -> None:
    first = await stage.chat()
    await first.send("First visitor")
    second = await stage.chat()
    await second.send("Second visitor")
    desk = await stage.desk("anna")
    await expect(desk.rows).to_have_count(2)
    await first.frame.get_by_role("button", name="Talk to a person").click()
    await expect(first.frame.locator("#presence")).to_have_text("Waiting for a person…")
    await expect(desk.rows.first).to_contain_text("First visitor")
    await expect(desk.rows.first.locator(".badge")).to_have_text("Waiting")
    await expect(desk.rows.first.locator(".time")).to_contain_text("waits")
    await expect(desk.page).to_have_title("(1) Desk · Frontdesk")


async def test_the_loser_of_a_double_claim_is_told_who_holds_it(stage: Stage) -> None:
    chat = await stage.chat(url=stage.website.url)
    await chat.send("I need help")
    anna = await stage.desk("anna", url=stage.server.url)  # not through the slow network
    ben = await stage.desk("ben")
    for desk in (anna, ben):
        await desk.open_first()
        await expect(desk.claim).to_be_enabled()
    stage.network.hold()  # Ben does not hear yet that Anna was faster
    await anna.claim.click()
    await expect(anna.page.get_by_text("You hold it; the bot is silent")).to_be_visible()
    await ben.claim.click()
    stage.network.flow()
    await expect(ben.notice).to_contain_text("anna holds this conversation")
    await expect(ben.page.locator("#substatus")).to_have_text("anna holds it")
    await expect(ben.claim).to_be_hidden()
    await expect(ben.text).to_be_disabled()
    await expect(ben.page.get_by_role("button", name="Close…")).to_be_disabled()
    assert (await stage.head()).agent == "anna"


async def test_the_keyboard_does_it_all(stage: Stage) -> None:
    for number in (1, 2):
        await (await stage.chat()).send(f"Visitor {number}")
    desk = await stage.desk("anna")
    await expect(desk.rows).to_have_count(2)
    keys = desk.page.keyboard
    await keys.press("j")
    await expect(desk.rows.nth(0)).to_have_attribute("aria-current", "true")
    await keys.press("j")
    await expect(desk.rows.nth(1)).to_have_attribute("aria-current", "true")
    await keys.press("ArrowUp")
    await expect(desk.rows.nth(0)).to_have_attribute("aria-current", "true")
    await expect(desk.claim).to_be_enabled()
    await keys.press("c")
    await expect(desk.text).to_be_enabled()
    await keys.press("w")
    await expect(desk.text).to_be_focused()
    await keys.type("one")
    await keys.press("Control+Enter")
    await keys.type("two")
    await keys.press("Enter")
    await expect(desk.log.locator(".from-agent .bubble p")).to_have_text("one\ntwo")
    await keys.press("Escape")
    await keys.press("?")
    help_text = desk.page.get_by_role("dialog", name="Keys")
    await expect(help_text).to_be_visible()
    await keys.press("Escape")
    await expect(help_text).to_be_hidden()
    await expect(desk.release).to_be_enabled()
    await keys.press("r")
    await expect(desk.claim).to_be_visible()


async def test_a_desk_that_was_cut_off_catches_up(stage: Stage) -> None:
    chat = await stage.chat(url=stage.website.url)
    await chat.send("I need help")
    desk = await stage.desk("anna")
    await desk.open_first()
    await desk.claim.click()
    await expect(desk.text).to_be_enabled()
    log, head = stage.server.services.log, await stage.head()
    stage.network.refusing = True
    stage.network.cut()
    await expect(desk.claim.or_(desk.release)).to_be_disabled()
    await desk.send("Written without a connection")
    for number in range(3):
        await log.append_message(
            head.conversation_id,
            role="visitor",
            text=f"Missed {number}",
            client_message_id=f"m{number}",
            author="v",
        )
    stage.network.refusing = False
    await desk.page.evaluate("window.dispatchEvent(new Event('online'))")
    await expect(desk.log.locator(".from-visitor .bubble")).to_have_text(
        ["I need help", "Missed 0", "Missed 1", "Missed 2"]
    )
    await expect(chat.frame.locator(".from-agent .bubble")).to_have_text(
        "Written without a connection"
    )
    await desk.page.reload()  # logged in as before, and the same conversation is open
    await expect(desk.log.locator(".from-visitor .bubble")).to_have_count(4)


async def test_closing_asks_the_visitor_and_leaves_the_list(stage: Stage) -> None:
    chat = await stage.chat()
    await chat.send("I need help")
    desk = await stage.desk("anna")
    await desk.open_first()
    await desk.page.get_by_role("button", name="Close…").click()
    await desk.page.get_by_label("Reason").fill("solved by phone")
    await desk.page.get_by_role("button", name="Close conversation").click()
    await expect(desk.log.get_by_text("Closed by anna: solved by phone")).to_be_visible()
    await expect(chat.frame.get_by_text("How did we do?")).to_be_visible()
    await expect(chat.frame.get_by_text("solved by phone")).to_have_count(0)
    await chat.frame.get_by_role("button", name="Start a new chat").click()
    await chat.send("Me again")
    await expect(desk.rows.filter(has_text="Me again")).to_have_count(1)
    await desk.rows.filter(has_text="Me again").click()
    await expect(desk.rows).to_have_count(1)  # the closed one has left


async def test_a_wrong_password_is_refused_and_an_ended_login_asks_again(stage: Stage) -> None:
    desk = await stage.desk("anna")
    await desk.page.evaluate("sessionStorage.setItem('frontdesk:desk:token', '\"expired\"')")
    await desk.page.reload()
    await expect(desk.page.get_by_role("alert")).to_have_text("Please log in again.")
    await desk.page.get_by_label("Name").fill("anna")
    await desk.page.get_by_label("Password").fill("a wrong password")
    await desk.page.get_by_role("button", name="Log in").click()
    await expect(desk.page.get_by_role("alert")).to_contain_text("password")
