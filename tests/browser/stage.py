"""What a browser test stands on: a real server behind a proxy, a website of another origin, a
scripted worker, and Chromium."""

import asyncio
import json
import re
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import Browser, BrowserContext, FrameLocator, Locator, Page, expect

from chatbot.conversation.events import ConversationId, Event, Head
from chatbot.record.tables import Site
from chatbot.server.auth import signer_of
from chatbot.server.site_settings import WidgetSettings
from chatbot.server.staff import create_staff
from tests.browser.host import Website
from tests.browser.wire import Network
from tests.chatbot.server.room import Running, ScriptedWorker

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PASSWORD = "a long password"
PIECES = [
    "Your parcel ",
    "left ",
    "Bristol 🌿",
    "🪴 this ",
    "morning",
    ", and ",
    "arrives ",
    "soon.",
]
REPLY = "".join(PIECES)
# records the widget's events from the first moment on
RECORD = """
window.seen = [];
for (const name of ['ready', 'opened', 'closed', 'message', 'error', 'started', 'status', 'unread',
  'rated', 'consent']) {
  window.addEventListener(`frontdesk:${name}`, (event) => window.seen.push([name, event.detail]));
}
window.shifts = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.shifts += entry.value;
}).observe({type: 'layout-shift', buffered: true});
"""
LOADED = """() => new Promise((done) => {
  if (window.frontdesk?.hasLoaded) done();
  else window.addEventListener('frontdesk:ready', () => done(), {once: true});
})"""


@dataclass
class Stage:
    server: Running
    network: Network
    website: Website
    browser: Browser
    worker: ScriptedWorker
    problems: list[str] = field(default_factory=list)
    _contexts: list[BrowserContext] = field(default_factory=list)

    async def visitor(self, **options: Any) -> BrowserContext:
        """A browser of its own: nothing stored, nothing shared."""
        context = await self.browser.new_context(
            **{"viewport": {"width": 1100, "height": 820}} | options
        )
        context.set_default_timeout(15_000)
        await context.add_init_script(RECORD)
        context.on("weberror", lambda error: self.problems.append(str(error.error)))
        context.on("dialog", self._dialog)
        self._contexts.append(context)
        return context

    async def close(self) -> None:
        for context in self._contexts:
            await context.close()
        self._contexts.clear()

    def set_site(self, *, title: str, welcome: str, **widget: Any) -> None:
        """Change the site ``demo``; ``widget`` as in WidgetSettings."""
        with self.server.services.database.session() as session:
            site = session.get(Site, "demo")
            assert site is not None
            site.title, site.welcome = title, welcome
            site.widget = WidgetSettings.model_validate(widget).model_dump(mode="json")

    async def _dialog(self, dialog: Any) -> None:
        self.problems.append(f"dialog: {dialog.message}")
        await dialog.dismiss()

    def release(self, pieces: int = 1) -> None:
        """Let the worker write so many pieces of its reply."""
        assert self.worker.gate is not None
        for _ in range(pieces):
            self.worker.gate.release()

    # -- the visitor's page

    async def chat(
        self, context: BrowserContext | None = None, *, url: str = "", opened: bool = True
    ) -> "Chat":
        page = await (context or await self.visitor()).new_page()
        await page.goto(url or self.website.url)
        await loaded(page)
        chat = Chat(page)
        if opened:
            await chat.open()
        return chat

    # -- the agent's page

    def staff(self, name: str) -> str:
        """A new account; returns a token of it."""
        services = self.server.services
        create_staff(services.database, "test", name, PASSWORD, "agent")
        return signer_of(services).issue_staff(name, 1)[0]

    async def desk(self, name: str, url: str = "", *, known: bool = False) -> "Desk":
        """Log in through the form, with a new account unless it is ``known``."""
        if not known:
            await asyncio.to_thread(self.staff, name)
        context = await self.visitor(viewport={"width": 1360, "height": 820})
        page = await context.new_page()
        await page.goto(f"{url or self.network.url}/desk")
        await page.get_by_label("Name").fill(name)
        await page.get_by_label("Password").fill(PASSWORD)
        await page.get_by_role("button", name="Log in").click()
        await expect(page.locator("#link")).to_have_text("Live")
        return Desk(page)

    # -- the truth

    async def head(self) -> Head:
        """Of the only conversation."""
        [head] = await self.server.services.log.open_conversations()
        return head

    async def events(self, conversation_id: ConversationId | None = None) -> list[Event]:
        return await self.server.services.log.read(
            conversation_id or (await self.head()).conversation_id
        )

    async def texts(self, kind: str = "message.created") -> list[str]:
        return [event.data["text"] for event in await self.events() if event.type == kind]


async def loaded(page: Page) -> None:
    """Wait until the widget is there. Not by polling: the pages' policy allows no ``eval``, and the
    driver's exception from that ends with the first look."""
    async with asyncio.timeout(15):
        await page.evaluate(LOADED)


class Chat:
    """The widget on a page of the website."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.frame: FrameLocator = page.frame_locator("frontdesk-widget iframe")
        self.text = self.frame.get_by_label("Your message")
        self.replies: Locator = self.frame.locator(".from-bot:not(.typing)").filter(
            has_not_text="How can we help"
        )
        self.stop = self.frame.get_by_role("button", name="Stop")
        self.banner = self.frame.locator("#banner")
        self.launcher = page.get_by_role("button", name=re.compile("(Open|Close) chat"))

    async def open(self) -> None:
        await self.page.evaluate("window.frontdesk.toggle('open')")
        await expect(self.text).to_be_visible()

    async def send(self, text: str) -> None:
        await self.text.fill(text)
        await self.text.press("Enter")

    async def expect_reply(self, text: str, nth: int = -1) -> None:
        """The reply that is shown is ``text``, to the last code unit."""
        bubble = self.replies.nth(nth).locator(".bubble")
        await expect(bubble).to_contain_text(text.strip()[-20:], use_inner_text=False)
        shown = await bubble.evaluate("(node) => node.textContent")
        assert shown == text, (shown, text)

    async def in_frame(self, script: str, argument: Any = None) -> Any:
        """Evaluate in the frame's document."""
        return await self.frame.locator("html").evaluate(f"(_, argument) => {script}", argument)

    async def conversation(self) -> ConversationId:
        """The id that the frame keeps."""
        kept = await self.in_frame("localStorage.getItem('frontdesk:demo:conversation')")
        return ConversationId(json.loads(kept))

    async def choose(self, item: str) -> None:
        """An item of the menu."""
        await self.frame.get_by_role("button", name="More").click()
        await self.frame.get_by_role("menuitem", name=item).click()

    async def events(self, name: str) -> list[Any]:
        seen: list[Any] = await self.page.evaluate("window.seen")
        return [detail for kind, detail in seen if kind == name]


class Desk:
    """The agent's page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.rows = page.locator("#list .row")
        self.log = page.locator("#log")
        self.text = page.get_by_label("Message", exact=True)
        self.claim = page.get_by_role("button", name="Take over")
        self.release = page.get_by_role("button", name="Give back")
        self.notice = page.locator("#notice")

    async def open_first(self) -> None:
        await self.rows.first.click()
        await expect(self.log).to_be_visible()

    async def send(self, text: str) -> None:
        await self.text.fill(text)
        await self.text.press("Enter")
