"""The script on the customer's page: tag, methods, events, page swaps, phones, keyboard."""

import time

import jwt
from playwright.async_api import Frame, Page, expect

from chatbot.record.tables import Site
from tests.browser.stage import PIECES, REPLY, Stage


async def test_the_page_sees_one_host_element_and_no_other_trace(stage: Stage) -> None:
    chat = await stage.chat(opened=False)
    await chat.page.add_script_tag(url=f"{stage.network.url}/widget.js")  # the tag twice
    globals_, hosts, body = await chat.page.evaluate(
        """() => [
          Object.keys(window).filter((name) => /frontdesk/i.test(name)),
          document.querySelectorAll('frontdesk-widget').length,
          document.body.children.length,
        ]"""
    )
    assert (globals_, hosts, body) == (["frontdesk"], 1, 2)
    assert await chat.page.evaluate("document.cookie + localStorage.length") == "0"
    assert set(stage.website.requests) <= {"/", "/favicon.ico"}


async def test_methods_events_and_state(stage: Stage) -> None:
    chat = await stage.chat(opened=False)
    page = chat.page
    assert await page.evaluate("[frontdesk.hasLoaded, frontdesk.isOpen]") == [True, False]
    await page.evaluate("frontdesk.toggle()")
    assert await page.evaluate("frontdesk.isOpen") is True
    await page.evaluate("frontdesk.toggle('open')")  # already: no second event
    await page.evaluate("frontdesk.toggle('close')")
    assert [name for name, _ in await page.evaluate("window.seen")] == ["ready", "opened", "closed"]
    error = await page.evaluate(
        "(() => { try { frontdesk.toggle('up') } catch (e) { return e.message } })()"
    )
    assert error == 'frontdesk.toggle: expected "open" or "close", got "up"'
    await page.evaluate("frontdesk.q.push(['toggle', 'open'], ['nothing'], ['setUser', 'no jwt'])")
    assert await page.evaluate("frontdesk.isOpen") is True
    assert [error["code"] for error in await chat.events("error")] == ["bad_call", "bad_call"]


async def test_calls_made_before_the_script_is_there_are_kept(stage: Stage) -> None:
    context = await stage.visitor()
    await context.add_init_script(
        """if (window === top) {
          window.frontdesk = {q: [['toggle', 'open']]};
          window.frontdeskSettings = {site: 'demo', title: 'Settings title',
            position: 'left', color: '#0a7'};
        }"""
    )
    stage.website.attributes = 'data-title="Tag title"'  # the tag is stronger
    chat = await stage.chat(context, opened=False)
    await expect(chat.text).to_be_visible()
    await expect(chat.frame.get_by_role("heading", name="Tag title")).to_be_visible()
    box = await chat.launcher.bounding_box()
    assert box is not None
    assert box["x"] < 100
    assert (
        await chat.launcher.evaluate("(node) => getComputedStyle(node).backgroundColor")
        == "rgb(0, 170, 119)"
    )


async def test_reset_forgets_the_visitor(stage: Stage) -> None:
    chat = await stage.chat()
    await chat.send("I am somebody")
    stage.release(len(PIECES))
    await chat.expect_reply(REPLY)
    first = await stage.head()
    await chat.page.evaluate("frontdesk.reset()")
    await chat.open()
    await expect(chat.frame.locator(".from-visitor")).to_have_count(0)
    await chat.send("I am somebody else")
    # shown at once; in the log when it is pending no more
    await expect(chat.frame.locator(".from-visitor:not(.pending) .bubble")).to_have_text(
        ["I am somebody else"]
    )
    heads = await stage.server.services.log.open_conversations()
    assert len({head.visitor for head in heads}) == 2
    assert first.visitor in {head.visitor for head in heads}


async def test_page_swaps_keep_the_chat(stage: Stage) -> None:
    chat = await stage.chat()
    await chat.send("Where is my order?")
    stage.release(2)
    await chat.expect_reply("".join(PIECES[:2]))
    # as Turbo does it: a new body. The frame is not even reloaded
    await chat.page.evaluate("document.body.replaceWith(document.createElement('body'))")
    stage.release(1)
    await chat.expect_reply("".join(PIECES[:3]))
    # a framework that owns the whole document throws us out: we come back
    await chat.page.evaluate("document.querySelector('frontdesk-widget').remove()")
    stage.release(len(PIECES))
    await chat.expect_reply(REPLY)
    html = """() => {
      const page = document.createElement('html');
      page.append(document.createElement('body'));
      document.documentElement.replaceWith(page);
    }"""
    for _ in range(2):
        await chat.page.evaluate(html)
        await chat.expect_reply(REPLY)
    await expect(chat.replies).to_have_count(1)
    assert len(await chat.events("ready")) == 1


async def test_keyboard_and_names(stage: Stage) -> None:
    chat = await stage.chat(opened=False)
    page = chat.page
    launcher = page.get_by_role("button", name="Open chat")
    await expect(launcher).to_have_attribute("aria-expanded", "false")
    await launcher.focus()
    await page.keyboard.press("Enter")
    await expect(chat.text).to_be_focused()
    await expect(page.get_by_role("button", name="Close chat").first).to_have_attribute(
        "aria-expanded", "true"
    )
    await expect(chat.frame.get_by_role("log", name="Messages")).to_have_attribute(
        "aria-live", "polite"
    )
    await page.keyboard.type("line one")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("line two")
    await page.keyboard.press("Enter")
    await expect(chat.frame.locator(".from-visitor .bubble")).to_have_text("line one\nline two")
    await page.keyboard.press("Escape")
    await expect(launcher).to_be_focused()
    assert await page.evaluate("frontdesk.isOpen") is False
    await page.keyboard.press("Shift+Tab")  # a closed panel is no stop on the way
    await expect(page.locator("#before")).to_be_focused()


async def test_on_a_phone_the_panel_is_the_screen(stage: Stage) -> None:
    context = await stage.visitor(
        viewport={"width": 390, "height": 760},
        has_touch=True,
        is_mobile=True,
        reduced_motion="reduce",
    )
    chat = await stage.chat(context, opened=False)
    await chat.page.get_by_role("button", name="Open chat").tap()
    box = await chat.page.locator("iframe").bounding_box()
    assert box == {"x": 0, "y": 0, "width": 390, "height": 760}
    await expect(chat.page.locator(".launcher")).to_be_hidden()
    size = await chat.text.evaluate("(node) => parseFloat(getComputedStyle(node).fontSize)")
    assert size >= 16  # or iOS zooms in
    await expect(chat.frame.get_by_text("Enter sends")).to_be_hidden()
    await chat.send("From a phone")
    stage.release(len(PIECES))
    await chat.expect_reply(REPLY)
    assert await chat.in_frame("document.documentElement.scrollWidth") == 390
    await chat.frame.get_by_role("button", name="Close chat").tap()
    await expect(chat.page.get_by_role("button", name="Open chat")).to_be_visible()


async def test_unread_messages_are_counted_until_they_are_seen_in_any_tab(stage: Stage) -> None:
    context = await stage.visitor()
    chat = await stage.chat(context)
    await chat.send("Where is my order?")
    await expect(chat.frame.locator(".from-visitor:not(.pending)")).to_have_count(1)
    await chat.page.evaluate("frontdesk.toggle('close')")
    stage.release(len(PIECES))
    await expect(
        chat.page.get_by_role("button", name="Open chat, 1 unread message")
    ).to_be_visible()
    other = await stage.chat(context, opened=False)
    await expect(other.page.locator(".badge")).to_have_text("1")
    await other.open()
    await expect(chat.page.locator(".badge")).to_be_hidden()
    await chat.page.reload()
    await expect(chat.page.get_by_role("button", name="Open chat")).to_be_visible()
    await expect(chat.page.locator(".badge")).to_be_hidden()


async def test_messages_from_elsewhere_are_not_obeyed(stage: Stage) -> None:
    chat = await stage.chat(opened=False)
    forged = {"frontdesk": 1, "name": "unread", "data": {"count": 5}}
    await chat.page.evaluate("(message) => window.postMessage(message, '*')", forged)
    frame = await _other_frame(chat.page)
    await frame.evaluate("(message) => parent.postMessage(message, '*')", forged)
    # and to the frame, from a window that is not its parent
    await frame.evaluate(
        "(message) => parent.document.querySelector('frontdesk-widget').shadowRoot"
        ".querySelector('iframe').contentWindow.postMessage(message, '*')",
        {"frontdesk": 1, "name": "reset", "data": {}},
    )
    await chat.open()
    await chat.send("Still here")
    await expect(chat.frame.locator(".from-visitor:not(.pending) .bubble")).to_have_text(
        "Still here"
    )
    await expect(chat.page.locator(".badge")).to_be_hidden()


async def _other_frame(page: Page) -> Frame:
    await page.evaluate("document.body.append(document.createElement('iframe'))")
    return page.frames[-1]


async def test_a_page_that_the_frame_does_not_know_gets_no_chat(stage: Stage) -> None:
    context = await stage.visitor()
    page = await context.new_page()
    stage.website.attributes = 'data-site="demo"'
    await page.goto(stage.website.url)
    lie = f"{stage.network.url}/widget/chat.html?site=demo&origin=http%3A%2F%2Flocalhost%3A1"
    await page.evaluate(
        """(src) => document.body.append(
          Object.assign(document.createElement('iframe'), {id: 'lie', src}))""",
        lie,
    )
    await expect(
        page.frame_locator("#lie").get_by_text("a page that it does not know")
    ).to_be_visible()


async def test_the_site_decides_which_pages_may_embed_it(stage: Stage) -> None:
    chat = await stage.chat(opened=False)
    response = await chat.page.request.get(f"{stage.network.url}/widget/chat.html?site=demo")
    policy = response.headers["content-security-policy"]
    assert "frame-ancestors 'self' http://localhost:* http://127.0.0.1:*" in policy
    assert "script-src 'self'" in policy


async def test_a_theme_is_followed(stage: Stage) -> None:
    stage.website.attributes = 'data-site="demo" data-theme="dark"'
    chat = await stage.chat()
    background = await chat.in_frame("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(20, 23, 28)"


async def test_a_known_customer_is_who_the_sites_own_server_says(stage: Stage) -> None:
    secret = "a secret of the site, long enough for HS256"
    with stage.server.services.database.session() as session:
        site = session.get(Site, "demo")
        assert site is not None
        site.identity_secret = secret
        session.commit()
    proof = jwt.encode({"sub": "customer-7", "exp": int(time.time()) + 60}, secret, "HS256")
    forged = jwt.encode({"sub": "customer-7", "exp": int(time.time()) + 60}, "x" * 40, "HS256")

    home = await stage.chat()
    await home.send("Said as nobody")
    # what is still on its way would go along
    await expect(home.frame.locator(".from-visitor:not(.pending)")).to_have_count(1)
    await home.page.evaluate("(jwt) => frontdesk.setUser(jwt)", proof)
    await expect(home.frame.locator(".from-visitor")).to_have_count(0)  # never merged
    await home.send("Said at home")
    await expect(home.frame.locator(".from-visitor:not(.pending)")).to_have_count(1)

    thief = await stage.chat()
    await thief.page.evaluate("(jwt) => frontdesk.setUser(jwt)", forged)
    await thief.send("Who am I?")
    await expect(thief.frame.locator(".from-visitor:not(.pending) .bubble")).to_have_text(
        "Who am I?"
    )
    assert "identity_refused" in [error["code"] for error in await thief.events("error")]

    phone = await stage.chat()
    await phone.page.evaluate("(jwt) => frontdesk.setUser(jwt)", proof)
    await expect(phone.frame.locator(".from-visitor .bubble")).to_have_text("Said at home")
    heads = await stage.server.services.log.open_conversations()
    assert len({head.visitor for head in heads}) == 3
