"""Whatever a model, a visitor, an agent or a site's owner writes is text, on every page."""

from playwright.async_api import Page, Request, expect

from tests.browser.payloads import PAYLOADS
from tests.browser.stage import Chat, Desk, Stage, loaded

TAGS = {"P", "STRONG", "EM", "CODE", "PRE", "UL", "OL", "LI", "A"}
INSPECT = """(root) => {
  const all = (selector) => [...root.querySelectorAll(`.bubble ${selector}`)];
  return {
    tags: all('*').map((node) => node.tagName),
    attributes: all(':not(a)').flatMap((node) => node.getAttributeNames()),
    links: all('a').map((node) => [node.protocol, node.host, node.target, node.rel]),
    fired: window.canary !== undefined,
  };
}"""


def watch(page: Page) -> list[str]:
    """Requests that would have carried the canary out."""
    sent: list[str] = []

    def note(request: Request) -> None:
        if "canary" in request.url:
            sent.append(request.url)

    page.on("request", note)
    return sent


EVERYTHING = "\n\n".join(PAYLOADS)


def test_the_corpus_is_large_and_each_payload_another_one() -> None:
    assert len(set(PAYLOADS)) == len(PAYLOADS) >= 100


async def test_no_text_becomes_anything_but_text(stage: Stage) -> None:
    pieces = [EVERYTHING[at : at + 397] for at in range(0, len(EVERYTHING), 397)]
    stage.worker.pieces[:] = pieces
    stage.worker.gate = None
    stage.set_site(title=PAYLOADS[1], welcome=EVERYTHING, quick_replies=_short(8))
    chat = await stage.chat()
    sent = watch(chat.page)
    replies = chat.frame.locator("#replies button")
    await expect(replies).to_have_count(8)
    assert await replies.all_text_contents() == _short(8)
    facts = {f"{name}{number}"[:64]: value for number, (name, value) in enumerate(_facts())}
    await chat.page.evaluate("(facts) => frontdesk.setCustomAttributes(facts)", facts)
    await chat.send(EVERYTHING[:8000])
    await expect(chat.frame.locator(".from-bot.live")).to_have_count(0)
    await expect(chat.frame.locator(".from-bot:not(.typing)")).to_have_count(2)

    desk = await stage.desk("anna")
    sent_by_desk = watch(desk.page)
    await desk.open_first()
    await desk.claim.click()
    await expect(desk.text).to_be_enabled()
    await desk.text.fill(EVERYTHING[-8000:])
    await desk.text.press("Enter")
    await expect(chat.frame.locator(".from-agent")).to_have_count(1)
    await expect(desk.log.locator(".from-agent:not(.pending)")).to_have_count(1)
    await _only_text(chat, desk)
    visitors_words = chat.frame.locator(".from-visitor .bubble")
    assert await visitors_words.evaluate("(node) => node.textContent") == EVERYTHING[:8000]
    heading = chat.frame.get_by_role("heading", level=1)
    assert await heading.evaluate("(node) => node.textContent") == PAYLOADS[1]
    assert sent == sent_by_desk == []
    assert not await chat.page.evaluate("'canary' in window")


def _short(most: int) -> list[str]:
    fitting = [" ".join(payload.split()) for payload in PAYLOADS if len(payload) <= 80]
    return fitting[:most]


def _facts() -> list[tuple[str, str]]:
    return [(payload, payload[:500]) for payload in PAYLOADS[::6]]


async def _only_text(chat: Chat, desk: Desk) -> None:
    for inspected in (
        await chat.frame.locator("html").evaluate(INSPECT),
        await desk.page.locator("html").evaluate(INSPECT),
    ):
        assert set(inspected["tags"]) <= TAGS
        assert set(inspected["attributes"]) <= {"class", "start"}
        assert not inspected["fired"]
        for protocol, host, target, rel in inspected["links"]:
            assert protocol in ("https:", "http:")
            assert "@" not in host
            assert (target, rel) == ("_blank", "noopener noreferrer nofollow")


async def test_names_are_text(stage: Stage) -> None:
    """Of agents, and of those who leave an address."""
    name = PAYLOADS[1].replace("canary.example/2", "canary.example/name")
    log = stage.server.services.log
    chat = await stage.chat()
    sent = watch(chat.page)
    await chat.send("Hello")
    await expect(chat.frame.locator(".own:not(.pending)")).to_have_count(1)
    conversation = (await stage.head()).conversation_id
    await log.change_status(conversation, "human", reason=name, actor=name, agent=name)
    await log.append_message(
        conversation, role="agent", text="Hi", client_message_id="a", author=name
    )
    await log.describe_visitor(
        conversation, facts={name: name}, source="form", client_message_id="f"
    )
    await expect(chat.frame.locator(".from-agent .sender")).to_have_text(name)
    await expect(chat.frame.locator("#presence")).to_contain_text(name)
    desk = await stage.desk("anna")
    sent_by_desk = watch(desk.page)
    await desk.open_first()
    await expect(desk.log.locator(".from-agent")).to_have_count(1)
    await _only_text(chat, desk)
    assert sent == sent_by_desk == []


async def test_attributes_of_the_tag_are_text(stage: Stage) -> None:
    payload = "\"><img src=x onerror='canary=1'>".replace('"', "&quot;")
    css = "red;} :host{display:block} *{background:url(https://canary.example/)"
    names = [
        f"data-{name}"
        for name in (
            "title",
            "color",
            "theme",
            "position",
            "open",
            "locale",
            "label",
            "sound",
            "consent",
        )
    ]
    given = " ".join(f'{name}="{payload} {css}"' for name in names)
    stage.website.attributes = f'data-site="demo" {given}'
    context = await stage.visitor()
    page = await context.new_page()
    sent = watch(page)
    await page.goto(stage.website.url)
    await loaded(page)
    await page.evaluate("frontdesk.toggle('open')")
    frame = page.frame_locator("iframe")
    await expect(frame.get_by_label("Your message")).to_be_visible()
    assert not (await frame.locator("html").evaluate(INSPECT))["fired"]
    assert not await page.evaluate("'canary' in window")
    assert (
        await page.evaluate(
            "document.querySelector('frontdesk-widget').shadowRoot.querySelector('img')"
        )
        is None
    )
    assert sent == []
