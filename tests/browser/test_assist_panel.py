"""The call panel in somebody else's desktop: another origin, a strict policy, keys only."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Frame, Page, expect

from chatbot.assist.board import AssistBoard, DraftSet
from chatbot.assist.drafts import Draft
from chatbot.assist.hints import Hint
from chatbot.assist.summary import summary_of
from chatbot.conversation.events import ConversationId
from chatbot.server.api_keys import create_key
from tests.browser.payloads import PAYLOADS
from tests.browser.stage import PASSWORD, Stage
from tests.browser.test_desk_team import AXE
from tests.browser.test_injection import watch

PAST = Draft("p0", "Which order is it?", "past", 0.7, "c-0")
OWN = Draft("m0", "We will look into it.", "model", 0.4, "v1")
BAD = Draft("p1", "<img src=x onerror='alert(1)'> **bold**", "past", 0.1, "c-9")
HINTS = (
    Hint("look_up", "orders", 0.62, "c-0"),
    Hint("then", "It will be with you tomorrow.", 0.31, "c-4"),
)
RECORD_EVENTS = """
window.panelEvents = [];
for (const name of ['ready', 'insert', 'token', 'closed', 'error']) {
  window.addEventListener(`frontdesk-assist:${name}`, (event) => {
    window.panelEvents.push([name, event.detail]);
  });
}
"""


class Call:
    """A call on the stage, spoken into over HTTP as a recogniser does."""

    def __init__(self, stage: Stage, http: httpx.AsyncClient, session: str) -> None:
        self.stage = stage
        self.http = http
        self.session = session
        self.name = ConversationId(session)
        self.began = int(time.time() * 1000) - 60_000
        self.board = AssistBoard(stage.server.services.redis)

    async def say(self, name: str, speaker: str, text: str, at: int, final: bool = True) -> None:
        body = {"id": name, "speaker": speaker, "text": text, "at": self.began + at, "final": final}
        answer = await self.http.post(f"/sessions/{self.session}/fragments", json=body)
        assert answer.status_code == 200, answer.text

    async def draft(self, name: str, *drafts: Draft, complete: bool = True) -> None:
        head = await self.stage.server.services.log.head(self.name)
        assert head is not None
        made = DraftSet(name, head.asked, "v1", drafts, complete, HINTS)
        await self.board.put(self.name, made)

    async def token(self) -> str:
        made = await self.http.post(f"/sessions/{self.session}/token")
        return str(made.json()["token"])

    async def fates(self) -> list[tuple[str, str]]:
        events = await self.stage.server.services.log.read(self.name)
        return [(e.type, e.data["suggestions_id"]) for e in events if "suggestion" in e.type]


@pytest_asyncio.fixture(loop_scope="session")
async def call(stage: Stage) -> AsyncIterator[Call]:
    _, key = create_key(stage.server.services.database, "test", "telephony", "demo")
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=f"{stage.server.url}/v1/assist", headers=headers) as http:
        body = {"site": "demo", "call_id": "pbx 1", "agent": "anna"}
        begun = await http.post("/sessions", json=body)
        yield Call(stage, http, begun.json()["session_id"])


async def desktop(stage: Stage, early: str = "", **options: Any) -> Page:
    """The agent's desktop, with the panel loaded; ``early`` runs before the tag's script."""
    stage.website.extra_policy = "; style-src 'unsafe-inline'"
    context = await stage.visitor(**options)
    await context.add_init_script(RECORD_EVENTS + early)
    page = await context.new_page()
    await page.goto(f"{stage.website.url}/desktop")
    await heard(page, "ready")
    return page


def panel_of(page: Page) -> Frame:
    [frame] = [frame for frame in page.frames if "/assist?" in frame.url]
    return frame


async def violations(frame: Frame) -> list[str]:
    await frame.evaluate(AXE.read_text())
    found = await frame.evaluate("axe.run().then(({violations}) => JSON.stringify(violations))")
    return [f"{rule['id']}: {[n['html'] for n in rule['nodes']][:3]}" for rule in json.loads(found)]


async def events_of(page: Page, name: str) -> list[Any]:
    seen: list[Any] = await page.evaluate("window.panelEvents")
    return [detail for kind, detail in seen if kind == name]


async def heard(page: Page, name: str, count: int = 1) -> list[Any]:
    """The events of this name, as soon as there are ``count``."""
    async with asyncio.timeout(15):
        while len(seen := await events_of(page, name)) < count:  # noqa: ASYNC110 - a page's
            await asyncio.sleep(0.02)
    return seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_an_agent_on_the_phone_is_helped_by_key(
    stage: Stage, call: Call, tmp_path: Path, scheme: str
) -> None:
    page = await desktop(stage, color_scheme=scheme)
    panel = panel_of(page)
    assert await violations(panel) == []
    await page.evaluate(
        "([id, token]) => window.frontdeskAssist.open(id, token)",
        [call.session, await call.token()],
    )
    await expect(panel.locator("#link")).to_have_text("On the phone: anna")
    await call.say("u1", "customer", "My parcel did not", 0, final=False)
    await expect(panel.locator("#speaking .bubble")).to_have_text("My parcel did not…")
    await call.say("u1", "customer", "My parcel did not come", 0)
    await expect(panel.locator("#speaking .bubble")).to_have_count(0)
    await expect(panel.locator("#log .bubble")).to_have_text(["My parcel did not come"])
    await expect(panel.get_by_text("Drafting…")).to_be_visible()
    await call.draft("s1", PAST, OWN, BAD)
    drafts = panel.locator(".draft")
    await expect(drafts.locator("p")).to_have_text([PAST.text, OWN.text, BAD.text])
    await expect(panel.locator("#summary")).to_contain_text("My parcel did not come")
    await expect(panel.locator("#hints li")).to_have_text(
        [
            "Look up orders62 % of the closest moments, e.g. in c-0",
            "Then say It will be with you tomorrow.31 % of the closest moments, e.g. in c-4",
        ]
    )
    await call.say("u2", "customer", "and I wait since", 900, final=False)
    await expect(panel.locator("#speaking .bubble")).to_be_visible()
    assert await violations(panel) == []
    await page.screenshot(path=tmp_path / f"panel-{scheme}.png")

    await page.evaluate("window.frontdeskAssist.focus()")
    async with asyncio.timeout(15):
        while not await panel.evaluate(  # noqa: ASYNC110 - a page's
            "document.hasFocus() && document.activeElement.id === 'log'"
        ):
            await asyncio.sleep(0.02)
    keys = page.keyboard
    await keys.press("d")
    await expect(drafts.nth(0)).to_be_focused()
    await keys.press("ArrowDown")
    await keys.press("Delete")  # turned down
    await expect(drafts.locator("p")).to_have_text([PAST.text, BAD.text])
    await keys.press("Escape")
    await keys.press("e")
    field = panel.get_by_label("Your words")
    await expect(field).to_have_value(PAST.text)
    assert await violations(panel) == []
    await keys.type(" Please.")
    await keys.press("Enter")
    [inserted] = await heard(page, "insert")
    assert inserted == {
        "text": f"{PAST.text} Please.",
        "session": call.session,
        "suggestions_id": "s1",
        "draft_id": "p0",
    }
    await call.say("u3", "agent", "Which order is it please", 2000)
    await expect(panel.locator("#assist")).to_be_hidden()
    await call.say("u2", "customer", "and I wait since Monday", 2500)
    await call.draft("s2", OWN)
    await expect(drafts).to_have_count(1)
    await keys.press("a")
    await heard(page, "insert", 2)
    async with asyncio.timeout(15):  # the page is told at once, the server a moment later
        while len(await call.fates()) < 5:  # noqa: ASYNC110 - the log's
            await asyncio.sleep(0.02)
    assert await call.fates() == [
        ("suggestions.shown", "s1"),
        ("suggestion.rejected", "s1"),
        ("suggestion.accepted", "s1"),
        ("suggestions.shown", "s2"),
        ("suggestion.accepted", "s2"),
    ]
    await call.http.post(f"/sessions/{call.session}/close", json={"reason": "solved"})
    await expect(panel.locator("#link")).to_have_text("Over: solved")
    assert await heard(page, "closed") == [{"session": call.session, "reason": "solved"}]
    assert await violations(panel) == []


async def test_a_token_that_ended_is_asked_for_anew(stage: Stage, call: Call) -> None:
    queued = [["open", call.session, "not a token"], ["shout"]]
    early = f"if (window === top) window.frontdeskAssist = {{ q: {json.dumps(queued)} }};"
    page = await desktop(stage, early)
    panel = panel_of(page)
    [problem] = await heard(page, "error")
    assert problem["code"] == "bad_call"
    assert await heard(page, "token") == [{"session": call.session}]
    await page.evaluate("([token]) => window.frontdeskAssist.setToken(token)", [await call.token()])
    await expect(panel.locator("#link")).to_have_text("On the phone: anna")


async def test_only_the_page_it_was_opened_for_is_heard(stage: Stage, call: Call) -> None:
    page = await desktop(stage)
    panel = panel_of(page)
    await page.evaluate(
        "([id, token]) => window.frontdeskAssist.open(id, token)",
        [call.session, await call.token()],
    )
    await expect(panel.locator("#link")).to_have_text("On the phone: anna")
    # the frame itself, and a frame inside the page, say the same things
    forged = {"frontdesk": 1, "name": "close", "data": {}}
    await panel.evaluate("(message) => window.postMessage(message, '*')", forged)
    insert = {"frontdesk": 1, "name": "insert", "data": {"text": "forged"}}
    await page.evaluate("(message) => window.postMessage(message, '*')", insert)
    await call.say("u1", "customer", "Are you still there", 0)  # it still follows the call
    await expect(panel.locator("#log .bubble")).to_have_text(["Are you still there"])
    assert await events_of(page, "insert") == []

    elsewhere = await page.context.new_page()
    await elsewhere.goto(f"{stage.website.other_site_url}/")
    answer = await elsewhere.request.get(f"{stage.network.url}/assist?site=none")
    assert "frame-ancestors 'self';" in answer.headers["content-security-policy"] + ";"
    direct = await page.context.new_page()
    wrong = f"{stage.network.url}/assist?site=demo&origin=https%3A%2F%2Felse.example"
    await direct.goto(f"{stage.website.url}/desktop")
    await direct.evaluate("(url) => { document.querySelector('iframe').src = url; }", wrong)
    await expect(direct.frame_locator("iframe").locator("#notice")).to_contain_text(
        "not where the panel was opened for"
    )


async def test_no_words_of_a_call_become_anything_but_text(stage: Stage, call: Call) -> None:
    page = await desktop(stage)
    panel, sent = panel_of(page), watch(page)
    await page.evaluate(
        "([id, token]) => window.frontdeskAssist.open(id, token)",
        [call.session, await call.token()],
    )
    fragments = [
        {
            "id": f"u{number}",
            "speaker": "customer" if number % 2 else "agent",
            "text": payload,
            "at": call.began + number,
            "final": number < len(PAYLOADS) - 5,
        }
        for number, payload in enumerate(PAYLOADS)
    ]
    heard_all = await call.http.post(
        f"/sessions/{call.session}/fragments", json={"fragments": fragments}
    )
    assert heard_all.status_code == 200, heard_all.text
    await call.say("last", "customer", PAYLOADS[0], len(PAYLOADS))
    head = await stage.server.services.log.head(call.name)
    assert head is not None
    drafts = tuple(Draft(f"p{n}", text, "past", 0.5, text) for n, text in enumerate(PAYLOADS[:3]))
    hints = tuple(Hint("then", text, 0.5, text) for text in PAYLOADS[3:7])
    await call.board.put(call.name, DraftSet("s1", head.asked, "v1", drafts, True, hints))
    await expect(panel.locator("#log .bubble")).to_have_count(len(PAYLOADS) - 4)
    await expect(panel.locator("#speaking .bubble")).to_have_count(5)
    await expect(panel.locator(".draft")).to_have_count(3)
    await expect(panel.locator("#hints li")).to_have_count(4)
    inside = await panel.evaluate(
        """() => ({
          nested: document.querySelectorAll('.bubble *, dd *, .draft p *').length,
          tags: [...new Set([...document.querySelectorAll('#hints *')].map((n) => n.tagName))],
          fired: window.canary !== undefined,
        })"""
    )
    assert inside == {"nested": 0, "tags": ["LI", "STRONG", "SPAN"], "fired": False}
    await call.http.post(f"/sessions/{call.session}/close", json={"reason": PAYLOADS[1]})
    await expect(panel.locator("#link")).to_have_text(f"Over: {PAYLOADS[1]}")
    assert not await panel.evaluate("'canary' in window")
    assert not await page.evaluate("'canary' in window")
    assert sent == []


async def test_the_panel_is_a_dashboard_app_of_chatwoot(stage: Stage) -> None:
    stage.staff("anna")
    context = await stage.visitor()
    page = await context.new_page()
    await page.goto(f"{stage.website.url}/chatwoot")
    await page.evaluate(
        """(origin) => {
          window.asked = 0;
          window.messages = [
            {id: 1, message_type: 0, content: 'Where is my order?', created_at: 1700000000},
            {id: 2, message_type: 2, content: 'assigned to anna', created_at: 1700000001},
            {id: 3, message_type: 1, content: 'secret note', private: true, created_at: 1700000002},
          ];
          window.addEventListener('message', (event) => {
            if (event.data !== 'chatwoot-dashboard-app:fetch-info') return;
            window.asked += 1;
            const conversation = {id: 7, account_id: 1, status: 'open', messages: window.messages};
            const data = {conversation, contact: {}, currentAgent: {id: 5, name: 'Anna'}};
            document.querySelector('iframe').contentWindow.postMessage(
              JSON.stringify({event: 'appContext', data}), '*');
          });
        }""",
        stage.website.url,
    )
    panel = page.frame_locator("iframe")
    await panel.get_by_label("Name").fill("anna")
    await panel.get_by_label("Password").fill(PASSWORD)
    await panel.get_by_role("button", name="Log in").click()
    await expect(panel.locator("#log .bubble")).to_have_text(["Where is my order?"])
    head = await stage.head()
    assert (head.status, head.agent, head.site) == ("human", "anna", "demo")
    board = AssistBoard(stage.server.services.redis)
    await board.put(head.conversation_id, DraftSet("s1", head.asked, "v1", (PAST,), True))
    await expect(panel.locator(".draft p")).to_have_text([PAST.text])
    assert await violations(panel_of(page)) == []
    await page.evaluate(
        "(message) => window.messages.push(message)",
        {"id": 4, "message_type": 1, "content": "Which one?", "created_at": 1_700_000_009},
    )
    await expect(panel.locator("#log .bubble")).to_have_text(["Where is my order?", "Which one?"])
    texts = await stage.texts()
    assert texts == ["Where is my order?", "Which one?"]


async def test_panel_and_desk_sum_up_alike(stage: Stage, call: Call) -> None:
    """One set of rules in two languages: what the server says, the desk's page says too."""
    await call.say("u1", "customer", "hello", 0)
    await call.say("u2", "customer", "my parcel did not come " + "at all " * 40, 1000)
    await call.say("u3", "agent", "Which order is it?", 5000)
    await call.say("u4", "customer", "the green one", 4000)  # late
    await call.say("u5", "customer", "order seven", 6000)
    await call.say("u6", "agent", "before that", 5500)  # late
    events = await stage.server.services.log.read(call.name)
    page = await (await stage.visitor()).new_page()
    await page.goto(f"{stage.network.url}/desk")
    told = await page.evaluate(
        """async (events) => {
          const { summaryOf } = await import('/widget/desk-summary.js');
          return summaryOf({ events, live: null });
        }""",
        [event.to_wire() for event in events],
    )
    assert told == summary_of(events, None).to_wire()
    assert told["open"] == ["order seven"]
