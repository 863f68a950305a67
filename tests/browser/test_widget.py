"""What a visitor and a website's developer can do with the widget, feature by feature. One server
for all; each test is a visitor of its own."""

import asyncio
import random
import time
from typing import Any

from playwright.async_api import expect

from chatbot.conversation.events import ConversationId, Event
from chatbot.record.tables import Conversation, EventRow
from tests.browser.stage import PIECES, REPLY, Chat, Stage
from tests.chatbot.server.room import DEADLINE

CLOSED = {"timezone": "UTC", "hours": {"mon": ["00:00-00:01"]}}
PHRASES = {
    "de": ("Mit einem Menschen sprechen", "Nachricht schreiben…", "ltr"),
    "es": ("Hablar con una persona", "Escriba un mensaje…", "ltr"),
    "zh": ("联系人工客服", "输入消息…", "ltr"),
    "ar": ("التحدث مع موظف", "اكتب رسالة…", "rtl"),
    "en": ("Talk to a person", "Write a message…", "ltr"),
}
NO_SOUND = """window.tones = 0;
window.AudioContext = class {
  currentTime = 0; destination = {};
  createOscillator() {
    window.tones += 1;
    return {frequency: {}, connect: (node) => node, start() {}, stop() {}};
  }
  createGain() {
    const nothing = () => {};
    return {gain: {setValueAtTime: nothing, linearRampToValueAtTime: nothing,
      exponentialRampToValueAtTime: nothing}, connect: (node) => node};
  }
  close() {}
};"""


async def log_of(stage: Stage, chat: Chat) -> list[Event]:
    return await stage.server.services.log.read(await chat.conversation())


async def claim(stage: Stage, conversation: ConversationId, agent: str = "anna") -> None:
    await stage.server.services.log.change_status(
        conversation, "human", reason="claimed", actor=agent, agent=agent
    )


async def say(stage: Stage, conversation: ConversationId, text: str, agent: str = "anna") -> None:
    await stage.server.services.log.append_message(
        conversation, role="agent", text=text, client_message_id=f"a-{text[:30].replace(' ', '-')}",
        author=agent,
    )  # fmt: skip


# -- the page's side


async def test_open_close_toggle_and_the_state(lobby: Stage) -> None:
    chat = await lobby.chat(opened=False)
    states = await chat.page.evaluate(
        """() => ['open', 'open', 'close', 'toggle', 'toggle'].map((name) => {
          frontdesk[name]();
          return frontdesk.isOpen;
        })"""
    )
    assert states == [True, True, False, True, False]
    names = [name for name, _ in await chat.page.evaluate("window.seen")]
    assert [name for name in names if name in ("opened", "closed")] == [
        "opened", "closed", "opened", "closed"
    ]  # fmt: skip


async def test_every_event_of_a_conversation(lobby: Stage) -> None:
    chat = await lobby.chat()
    await chat.send("Hello")
    await chat.expect_reply(REPLY)
    conversation = await chat.conversation()
    await chat.page.evaluate("frontdesk.close()")
    await claim(lobby, conversation)
    await say(lobby, conversation, "I am Anna")
    await expect(chat.page.get_by_role("button", name="1 unread message")).to_be_visible()
    names = [name for name, _ in await chat.page.evaluate("window.seen")]
    assert names.count("started") == 1
    assert await chat.events("status") == [{"status": "human"}]
    assert [message["role"] for message in await chat.events("message")] == [
        "visitor", "bot", "agent"
    ]  # fmt: skip
    assert (await chat.events("unread"))[-1] == {"count": 1}


async def test_destroy_leaves_no_trace_and_the_tag_may_run_again(lobby: Stage) -> None:
    chat = await lobby.chat()
    await chat.send("Before")
    await chat.expect_reply(REPLY)
    await chat.page.evaluate("frontdesk.destroy()")
    assert await chat.page.evaluate(
        "[document.querySelector('frontdesk-widget'), window.frontdesk ?? null]"
    ) == [None, None]
    await chat.page.evaluate("document.documentElement.append(document.createElement('i'))")
    await chat.page.evaluate(
        """(src) => {
          window.frontdeskSettings = {site: 'demo'};
          document.body.append(Object.assign(document.createElement('script'), {src}));
        }""",
        f"{lobby.network.url}/widget.js",
    )
    await expect(chat.page.locator(".launcher")).to_be_visible()
    await chat.open()
    await chat.expect_reply(REPLY)  # the chat itself was kept


async def test_a_launcher_of_the_pages_own(lobby: Stage) -> None:
    lobby.website.attributes = 'data-site="demo" data-launcher="#before"'
    chat = await lobby.chat(opened=False)
    await expect(chat.page.locator(".launcher")).to_be_hidden()
    await chat.page.locator("#before").click()
    await expect(chat.text).to_be_focused()
    # the page swaps its body: the new button opens as well
    await chat.page.evaluate(
        """() => {
          frontdesk.close();
          const body = document.createElement('body');
          const button = {id: 'before', textContent: 'x'};
          body.append(Object.assign(document.createElement('button'), button));
          document.body.replaceWith(body);
        }"""
    )
    await chat.page.locator("#before").click()
    await expect(chat.text).to_be_focused()
    await chat.page.keyboard.press("Escape")
    await expect(chat.page.locator("#before")).to_be_focused()


async def test_css_variables_label_and_theme(lobby: Stage) -> None:
    lobby.website.attributes = 'data-site="demo" data-label="Ask us"'
    chat = await lobby.chat()
    await chat.page.evaluate(
        """() => {
          const style = document.documentElement.style;
          style.setProperty('--frontdesk-color', 'rebeccapurple');
          style.setProperty('--frontdesk-radius', '4px');
          style.setProperty('--frontdesk-gap', '40px');
          frontdesk.setTheme('dark');
        }"""
    )
    await expect(chat.frame.locator("html")).to_have_attribute("data-theme", "dark")
    head = chat.frame.locator("header")
    await expect(head).to_have_css("background-color", "rgb(102, 51, 153)")
    await expect(chat.page.locator(".launcher")).to_have_css(
        "background-color", "rgb(102, 51, 153)"
    )
    assert (
        await chat.in_frame(
            "getComputedStyle(document.documentElement).getPropertyValue('--round')"
        )
        == "4px"
    )
    await chat.page.evaluate("frontdesk.close()")
    box = await chat.page.get_by_text("Ask us").bounding_box()
    launcher = await chat.page.locator(".launcher").bounding_box()
    assert box is not None
    assert launcher is not None
    assert launcher["width"] > launcher["height"]
    assert launcher["y"] + launcher["height"] == 820 - 40


async def test_colors_that_could_not_be_read_are_made_readable(lobby: Stage) -> None:
    lobby.website.attributes = 'data-site="demo" data-color="#ffe14d"'
    chat = await lobby.chat()
    measured = await chat.in_frame(
        """(async () => {
          const { contrast } = await import(`${location.origin}/widget/looks.js`);
          const style = getComputedStyle(document.documentElement);
          const value = (name) => style.getPropertyValue(name).trim();
          return [contrast(value('--accent'), value('--on-accent')),
            contrast(value('--accent-light'), '#f2f4f7'),
            contrast(value('--accent-dark'), '#23272f')];
        })()"""
    )
    assert min(measured) >= 4.5


async def test_the_visitors_browser_decides_the_language(lobby: Stage) -> None:
    for language, (person, placeholder, direction) in PHRASES.items():
        context = await lobby.visitor(locale={"zh": "zh-TW", "es": "es-MX"}.get(language, language))
        chat = await lobby.chat(context, opened=False)
        await chat.page.evaluate("frontdesk.open()")
        await expect(chat.frame.get_by_role("button", name=person)).to_be_visible()
        await expect(chat.frame.get_by_placeholder(placeholder)).to_be_visible()
        await expect(chat.frame.locator("html")).to_have_attribute("dir", direction)
        await expect(chat.frame.locator("html")).to_have_attribute("lang", language)
        await context.close()


async def test_the_page_may_decide_the_language(lobby: Stage) -> None:
    lobby.website.attributes = 'data-site="demo" data-locale="de-AT"'
    chat = await lobby.chat(opened=False)
    await expect(chat.page.locator(".launcher")).to_have_attribute("aria-label", "Chat öffnen")
    await chat.page.evaluate("frontdesk.open()")
    field = chat.frame.locator("#text")
    await field.fill("Hallo")
    await field.press("Enter")
    await chat.expect_reply(REPLY)
    await expect(chat.frame.locator(".from-bot .sender").first).to_have_text("Assistent")
    await chat.page.evaluate("frontdesk.setLocale('ar')")
    await expect(chat.frame.locator(".from-bot .sender").first).to_have_text("المساعد")
    # Arabic around, English inside: each message has its own direction
    own = await chat.frame.locator(".own .bubble").bounding_box()
    other = await chat.frame.locator(".from-bot .bubble").last.bounding_box()
    assert own is not None
    assert other is not None
    assert own["x"] < other["x"]
    bubble = chat.frame.locator(".from-bot .bubble").last
    assert await bubble.evaluate("(node) => getComputedStyle(node).direction") == "ltr"
    await chat.page.evaluate("frontdesk.setLocale('fr')")  # not there: the browser's own
    await expect(chat.frame.locator("html")).to_have_attribute("lang", "en")


async def test_attributes_reach_staff_and_no_visitor(lobby: Stage) -> None:
    chat = await lobby.chat()
    await chat.page.evaluate("frontdesk.setCustomAttributes({plan: 'gold', seats: 3, old: 1})")
    await chat.page.evaluate("frontdesk.setCustomAttributes({old: null})")
    await chat.send("Hello")
    await chat.expect_reply(REPLY)
    async with asyncio.timeout(DEADLINE):
        while len(await log_of(lobby, chat)) < 3:  # noqa: ASYNC110 - the log tells no test
            await asyncio.sleep(0.02)
    for _ in range(2):  # a reload tells nothing twice
        described = [
            event for event in await log_of(lobby, chat) if event.type == "visitor.described"
        ]
        assert [event.data["facts"] for event in described] == [{"plan": "gold", "seats": "3"}]
        await chat.page.reload()
        await chat.page.evaluate("frontdesk.setCustomAttributes({plan: 'gold', seats: 3})")
        await chat.expect_reply(REPLY)
        await expect(chat.frame.locator("#presence")).to_contain_text("Assistant")
    assert described[0].data["source"] == "page"
    await expect(chat.frame.get_by_text("gold")).to_have_count(0)


# -- the visitor's side


async def test_welcome_and_quick_replies_of_the_site(lobby: Stage) -> None:
    lobby.set_site(
        title="Plants", welcome="Welcome!", quick_replies=["Where is my order?", "Returns"]
    )
    chat = await lobby.chat()
    await expect(chat.frame.get_by_text("Welcome!")).to_be_visible()
    await chat.frame.get_by_role("button", name="Where is my order?").click()
    await chat.expect_reply(REPLY)
    await expect(chat.frame.locator("#replies")).to_be_hidden()
    await expect(chat.text).to_be_focused()
    texts = [
        event.data["text"] for event in await log_of(lobby, chat) if event.type == "message.created"
    ]
    assert texts == ["Where is my order?"]


async def test_a_message_is_copied(lobby: Stage) -> None:
    chat = await lobby.chat()
    await chat.send("Hello")
    await chat.expect_reply(REPLY)
    await chat.in_frame(
        "{ navigator.clipboard.writeText = async (text) => { window.copied = text; }; }"
    )
    await chat.replies.last.get_by_role("button", name="Copy").click()
    await expect(chat.replies.last.get_by_role("button", name="Copied")).to_be_visible()
    assert await chat.in_frame("window.copied") == REPLY


async def test_links_are_followed_by_list(lobby: Stage) -> None:
    lobby.set_site(title="Demo", welcome="", link_hosts=["shop.example"])
    lobby.worker.pieces[:] = [
        "https://shop.example/a https://help.shop.example/b https://evil.example/c "
        "https://notshop.example/d [text](https://evil.example/e)"
    ]
    chat = await lobby.chat()
    await chat.send("Links?")
    await expect(chat.replies).to_have_count(1)
    links = chat.replies.locator("a")
    assert await links.evaluate_all("(nodes) => nodes.map((node) => node.href)") == [
        "https://shop.example/a", "https://help.shop.example/b"
    ]  # fmt: skip


async def test_a_person_is_asked_for_and_comes(lobby: Stage) -> None:
    _waits(lobby, 120)
    chat = await lobby.chat()
    await chat.send("Hello")
    await chat.expect_reply(REPLY)
    await chat.frame.get_by_role("button", name="Talk to a person").click()
    card = chat.frame.locator("#waiting")
    await expect(card).to_contain_text("A person is coming")
    await expect(card).to_contain_text("You are next in line. It usually takes about 2 minutes.")
    conversation = await chat.conversation()
    await claim(lobby, conversation)
    await expect(card).to_be_hidden()
    await expect(chat.frame.get_by_text("anna joined the chat")).to_be_visible()
    await expect(chat.frame.locator("#presence")).to_have_text("anna is here")
    await say(lobby, conversation, "I am **Anna**")
    await expect(chat.frame.locator(".from-agent strong")).to_have_text("Anna")


def _waits(stage: Stage, seconds: int) -> None:
    """Three waits of so many seconds in the record, each alone in the line."""
    now = int(time.time() * 1000)
    with stage.server.services.database.session() as session:
        for number in range(3):
            name, began = f"old-{number}", now - (number + 1) * 3_600_000
            session.merge(
                Conversation(id=name, epoch="1-a", site="demo", visitor="v", status="closed",
                             started_at=began, updated_at=began)
            )  # fmt: skip
            session.flush()
            for offset, (status, at) in enumerate(
                [("waiting", began), ("human", began + seconds * 1000)], 1
            ):
                session.merge(
                    EventRow(conversation_id=name, epoch="1-a", offset=offset, at=at,
                             type="status.changed", data={"status": status})
                )  # fmt: skip


async def test_outside_the_hours_a_form_takes_a_message_for_staff(lobby: Stage) -> None:
    lobby.set_site(title="Demo", welcome="", **CLOSED)
    chat = await lobby.chat()
    await chat.frame.get_by_role("button", name="Talk to a person").click()
    form = chat.frame.get_by_role("form", name="Leave a message")
    await expect(form).to_contain_text("Nobody is here now. We are back Monday")
    await form.get_by_label("E-mail address").fill("nobody")
    await form.get_by_role("button", name="Send message").click()
    await expect(form.get_by_role("alert")).to_contain_text("Enter an e-mail address")
    await expect(form.get_by_label("E-mail address")).to_be_focused()
    await form.get_by_label("Name").fill("Ada")
    await form.get_by_label("E-mail address").fill("ada@shop.example")
    await form.get_by_role("button", name="Send message").click()
    await expect(form.get_by_role("alert")).to_have_text("Write a message first.")
    await form.get_by_label("Message").fill("My parcel is lost")
    await form.get_by_label("Message").press("Tab")
    await chat.page.keyboard.press("Enter")
    await expect(chat.banner).to_contain_text("We will answer to ada@shop.example.")
    await expect(chat.frame.locator(".own:not(.pending) .bubble")).to_have_text("My parcel is lost")
    head = await lobby.server.services.log.head(await chat.conversation())
    assert head is not None
    assert head.status == "waiting"
    facts = [event.data for event in await log_of(lobby, chat) if event.type == "visitor.described"]
    assert facts[0]["facts"] == {"name": "Ada", "email": "ada@shop.example"}


async def test_ending_and_rating(lobby: Stage) -> None:
    chat = await lobby.chat()
    await chat.send("Hello")
    await chat.expect_reply(REPLY)
    await chat.choose("End this chat")
    await chat.frame.get_by_title("4 of 5").click()
    await chat.frame.get_by_label("Comment").fill("quick")
    await chat.frame.get_by_role("button", name="Send rating").click()
    await expect(chat.frame.get_by_text("Thank you for telling us.")).to_be_visible()
    ratings = [event.data for event in await log_of(lobby, chat) if event.type == "rating.given"]
    assert ratings == [{"score": 4, "comment": "quick"}]
    assert await chat.events("rated") == [{"score": 4}]
    await chat.frame.get_by_role("button", name="Start a new chat").click()
    await expect(chat.text).to_be_focused()
    await expect(chat.frame.locator(".own")).to_have_count(0)


async def test_unread_messages_are_counted_in_the_title_of_a_hidden_page(lobby: Stage) -> None:
    chat = await lobby.chat()
    await chat.send("Hello")
    await chat.expect_reply(REPLY)
    await chat.page.evaluate(
        """() => {
          frontdesk.close();
          Object.defineProperty(document, 'hidden', {configurable: true, get: () => true});
        }"""
    )
    conversation = await chat.conversation()
    await claim(lobby, conversation)
    await say(lobby, conversation, "First")
    await expect(chat.page).to_have_title("(1) Shop")
    await chat.page.evaluate("document.title = '(1) Basket'")  # the page has it anew: not ours
    await say(lobby, conversation, "Second")
    await expect(chat.page).to_have_title("(2) Basket")
    await chat.page.evaluate(
        "{ delete document.hidden; document.dispatchEvent(new Event('visibilitychange')); }"
    )
    await expect(chat.page).to_have_title("Basket")


async def test_sound_is_off_until_it_is_turned_on(lobby: Stage) -> None:
    context = await lobby.visitor()
    await context.add_init_script(NO_SOUND)
    chat = await lobby.chat(context)
    await chat.send("Hello")
    await chat.expect_reply(REPLY)
    conversation = await chat.conversation()
    await claim(lobby, conversation)
    await chat.page.evaluate("frontdesk.close()")
    await say(lobby, conversation, "First")
    await expect(chat.page.locator(".badge")).to_have_text("1")
    assert await chat.in_frame("window.tones") == 0
    await chat.open()
    await chat.choose("Turn sound on")  # and hear how it sounds
    assert await chat.in_frame("window.tones") == 2
    await say(lobby, conversation, "While reading")
    await expect(chat.frame.get_by_text("While reading")).to_be_visible()
    assert await chat.in_frame("window.tones") == 2  # who looks needs no sound
    await chat.page.evaluate("frontdesk.close()")
    await say(lobby, conversation, "While away")
    await expect(chat.page.locator(".badge")).to_have_text("1")
    assert await chat.in_frame("window.tones") == 4


async def test_the_transcript_is_downloaded(lobby: Stage) -> None:
    chat = await lobby.chat()
    await chat.send("Where is\nmy order?")
    await chat.expect_reply(REPLY)
    async with chat.page.expect_download() as started:
        await chat.choose("Download this chat")
    download = await started.value
    assert download.suggested_filename.startswith("chat-2")
    text = (await download.path()).read_text()
    assert "You: Where is\nmy order?" in text
    assert f"Assistant: {REPLY}" in text


STORED = "Object.keys(localStorage).length + Object.keys(sessionStorage).length"


async def test_nothing_is_stored_before_consent(lobby: Stage) -> None:
    lobby.set_site(
        title="Demo", welcome="", consent=True, privacy_url="https://shop.example/privacy"
    )
    chat = await lobby.chat(opened=False)
    await chat.page.evaluate("frontdesk.open()")
    agree = chat.frame.get_by_role("button", name="Agree and chat")
    await expect(agree).to_be_visible()
    await expect(chat.text).to_be_hidden()
    link = chat.frame.get_by_role("link", name="Privacy")
    await expect(link).to_have_attribute("href", "https://shop.example/privacy")
    assert (await chat.in_frame(STORED), await chat.page.evaluate(STORED)) == (0, 0)
    await agree.click()
    await chat.send("Hello")
    await chat.expect_reply(REPLY)
    assert await chat.in_frame(STORED) > 0
    assert await chat.events("consent") == [{"given": False}, {"given": True}]
    await chat.page.reload()
    await chat.expect_reply(REPLY)  # asked once
    await chat.page.evaluate("frontdesk.setConsent(false)")
    await expect(agree).to_be_visible()
    assert (await chat.in_frame(STORED), await chat.page.evaluate(STORED)) == (0, 0)
    assert await chat.page.evaluate("document.cookie") == ""


async def test_a_consent_manager_of_the_page_decides(lobby: Stage) -> None:
    lobby.website.attributes = 'data-site="demo" data-consent="required"'
    chat = await lobby.chat(opened=False)
    await chat.page.evaluate("frontdesk.open()")
    await expect(chat.frame.get_by_role("button", name="Agree and chat")).to_be_visible()
    assert (await chat.in_frame(STORED), await chat.page.evaluate(STORED)) == (0, 0)
    await chat.page.evaluate("frontdesk.setConsent(true)")
    await chat.send("Hello")
    await chat.expect_reply(REPLY)


async def test_everything_by_keyboard_alone(lobby: Stage) -> None:
    lobby.set_site(title="Demo", welcome="", quick_replies=["Returns"])
    chat = await lobby.chat(opened=False)
    keys = chat.page.keyboard
    await chat.page.locator("#before").focus()
    await keys.press("Tab")
    await keys.press("Enter")
    await expect(chat.text).to_be_focused()
    returns = chat.frame.get_by_role("button", name="Returns")
    await expect(returns).to_be_visible()
    await keys.press("Shift+Tab")
    await expect(returns).to_be_focused()
    await keys.press("Enter")
    await chat.expect_reply(REPLY)
    await expect(chat.text).to_be_focused()
    copy = chat.replies.get_by_role("button", name="Copy")
    await expect(copy).to_be_visible()
    await keys.press("Shift+Tab")
    await expect(copy).to_be_focused()
    more = chat.frame.get_by_role("button", name="More")
    await more.focus()
    await keys.press("ArrowDown")
    items = chat.frame.get_by_role("menuitem")
    await expect(items.nth(0)).to_be_focused()
    await keys.press("ArrowDown")
    await expect(items.nth(1)).to_be_focused()
    await keys.press("End")
    await expect(items.last).to_be_focused()
    await keys.press("Escape")  # the menu alone
    await expect(more).to_be_focused()
    assert await chat.page.evaluate("frontdesk.isOpen") is True
    await keys.press("Enter")
    await expect(items.nth(0)).to_be_focused()
    await keys.press("End")
    await expect(items.last).to_be_focused()
    await keys.press("Enter")  # end the chat
    star = chat.frame.get_by_role("radio", name="1 of 5")
    await expect(star).to_be_visible()
    await star.focus()
    await keys.press("ArrowRight")
    await expect(chat.frame.get_by_role("radio", name="2 of 5")).to_be_checked()
    await keys.press("Escape")
    await expect(chat.launcher.first).to_be_focused()


async def test_offline_for_twenty_seconds_in_the_middle_of_a_reply(lobby: Stage) -> None:
    """The browser's clock is Playwright's: twenty seconds pass at once."""
    lobby.worker.gate = asyncio.Semaphore(0)
    context = await lobby.visitor()
    await context.clock.install()
    chat = await lobby.chat(context)
    await chat.send("Where is my order?")
    middle = random.Random().randint(1, len(PIECES) - 1)
    lobby.release(middle)
    await chat.expect_reply("".join(PIECES[:middle]))
    lobby.network.refusing = True
    lobby.network.cut()
    await context.set_offline(True)
    await context.clock.fast_forward(20_000)
    await expect(chat.banner).to_contain_text("You are offline")
    lobby.release(len(PIECES))  # the reply goes on meanwhile
    lobby.network.refusing = False
    await context.set_offline(False)
    await context.clock.fast_forward(1_000)
    await chat.expect_reply(REPLY)
    await expect(chat.banner).to_be_hidden()
    await expect(chat.replies).to_have_count(1)


async def test_the_page_does_not_move(lobby: Stage) -> None:
    """Layout shift, as the browser itself counts it, over a whole visit."""
    lobby.website.attributes = 'data-site="demo" data-open'
    chat = await lobby.chat(opened=False)
    await chat.send("Hello")
    await chat.expect_reply(REPLY)
    await chat.page.evaluate("frontdesk.close(); frontdesk.setLocale('ar'); frontdesk.open()")
    await expect(chat.frame.locator("html")).to_have_attribute("dir", "rtl")
    await chat.page.evaluate("frontdesk.destroy()")
    shifts: Any = await chat.page.evaluate(
        "new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(window.shifts))))"
    )
    assert shifts == 0
