"""client.js and markdown.js alone, run by Chromium: assembly of frames, the outbox, the
connection's back-off, and text to nodes."""

import random
from collections.abc import Callable
from typing import Any

import pytest_asyncio
from playwright.async_api import Page

from tests.browser.stage import Stage

Evaluate = Callable[..., Any]
LETTERS = ["a", "é", "ß", "🌿", "👩‍👩‍👧", "🇬🇧", "\u0301", "中", "\u202e", "\n", " ", "𝒳"]

ASSEMBLE = """async ([frames, contiguous]) => {
  const { Transcript } = await import(`${location.origin}/widget/client.js`);
  const transcript = new Transcript({ contiguous });
  const outcomes = frames.map((frame) => {
    if (frame.type !== 'welcome') return transcript.apply(frame);
    transcript.welcome(frame);
    return 'welcome';
  });
  return {
    outcomes,
    live: transcript.live?.text ?? null,
    length: transcript.live?.length ?? null,
    offsets: transcript.events.map((event) => event.offset),
    status: transcript.status,
    agent: transcript.agent,
    cursor: transcript.cursor(),
  };
}"""


@pytest_asyncio.fixture(loop_scope="session")
async def page(stage: Stage) -> Page:
    """A page of the server's own origin, where its modules can be imported."""
    context = await stage.visitor()
    page = await context.new_page()
    await page.goto(f"{stage.network.url}/widget/chat.html?site=demo")
    return page


def welcome(**fields: Any) -> dict[str, Any]:
    frame = {"type": "welcome", "conversation_id": "c", "epoch": "e", "offset": 0, "events": []}
    return {**frame, "recovered": False, "status": "bot", "live_reply": None, **fields}


def started(reply: str = "r") -> dict[str, Any]:
    return {"type": "reply.started", "reply_id": reply, "version": "v"}


def delta(at: int, text: str, reply: str = "r") -> dict[str, Any]:
    return {"type": "reply.delta", "reply_id": reply, "from_char": at, "text": text}


def event(offset: int, kind: str = "message.created", **data: Any) -> dict[str, Any]:
    return {"type": kind, "offset": offset, "at": 1, **data}


async def assemble(page: Page, frames: list[dict[str, Any]], contiguous: bool = False) -> Any:
    return await page.evaluate(ASSEMBLE, [frames, contiguous])


async def test_deltas_that_overlap_and_repeat_make_one_text(page: Page) -> None:
    """Any cutting of any text, each piece sent again with what was before it: the same text."""
    dice = random.Random(7)
    for _ in range(40):
        text = "".join(dice.choices(LETTERS, k=dice.randint(1, 60)))
        frames, at = [welcome(), started()], 0
        while at < len(text):
            end = min(len(text), at + dice.randint(1, 7))
            back = dice.randint(0, at)
            frames += [delta(back, text[back:end])] * dice.randint(1, 3)
            at = end
        result = await assemble(page, frames)
        assert result["live"] == text
        assert result["length"] == len(text)
        assert "gap" not in result["outcomes"]


async def test_positions_are_code_points_and_not_utf_16(page: Page) -> None:
    frames = [
        welcome(),
        started(),
        delta(0, "🌿🪴"),
        delta(2, "x"),
        delta(1, "🪴xy"),
        delta(4, "!"),
    ]
    result = await assemble(page, frames)
    assert result["live"] == "🌿🪴xy!"
    assert result["outcomes"][2:] == ["applied"] * 4


async def test_what_is_missing_is_a_gap_and_what_is_known_a_duplicate(page: Page) -> None:
    completed = event(1, "reply.completed", reply_id="r", text="abc")
    frames = [
        welcome(),
        delta(0, "a"),  # of a reply that never began here
        started(),
        delta(0, "ab"),
        delta(3, "d"),
        delta(0, "a"),
        started(),
        completed,
        completed,
        delta(2, "c"),  # late, of a reply that ended
        started(),
        {"type": "message.accepted", "offset": 1, "client_message_id": "m"},
    ]
    result = await assemble(page, frames)
    assert result["outcomes"][1:] == [
        "gap", "applied", "applied", "gap", "duplicate", "duplicate",
        "applied", "duplicate", "duplicate", "duplicate", "ignored",
    ]  # fmt: skip
    assert result["live"] is None
    assert result["offsets"] == [1]


async def test_visitors_offsets_may_skip_and_staffs_may_not(page: Page) -> None:
    frames = [welcome(), event(1), event(3)]
    assert (await assemble(page, frames))["outcomes"][1:] == ["applied", "applied"]
    assert (await assemble(page, frames, contiguous=True))["outcomes"][1:] == ["applied", "gap"]


async def test_a_recovered_welcome_adds_and_another_replaces(page: Page) -> None:
    live = {"reply_id": "r", "version": "v", "text": "so far 🌿"}
    first = [welcome(offset=2, events=[event(1), event(2)]), event(3)]
    more = welcome(recovered=True, offset=5, events=[event(4), event(5)], live_reply=live)
    result = await assemble(page, [*first, more, delta(8, "!")])
    assert result["offsets"] == [1, 2, 3, 4, 5]
    assert result["live"] == "so far 🌿!"
    fresh = welcome(epoch="other", offset=1, events=[event(1)], status="closed")
    result = await assemble(page, [*first, more, fresh])
    assert (result["offsets"], result["live"], result["status"]) == ([1], None, "closed")
    assert result["cursor"] == {"epoch": "other", "offset": 1}


async def test_who_holds_the_conversation_follows_the_log(page: Page) -> None:
    taken = event(1, "status.changed", status="human", previous="bot", actor="anna")
    result = await assemble(page, [welcome(), taken])
    assert (result["status"], result["agent"]) == ("human", "anna")
    given = event(2, "status.changed", status="bot", previous="human", actor="anna")
    result = await assemble(page, [welcome(), taken, given])
    assert (result["status"], result["agent"]) == ("bot", "")


CONNECT = """async ({ codes, random }) => {
  const { Connection } = await import(`${location.origin}/widget/client.js`);
  const waits = [];
  const real = window.WebSocket;
  const sockets = [];
  window.WebSocket = class {
    constructor() { sockets.push(this); }
    send() {}
    close() {}
  };
  const connection = new Connection({
    url: 'ws://nowhere.invalid',
    random: () => random,
    timing: { connect: 1e6 },
    hello: async () => ({ type: 'hello' }),
    onFrame: () => {},
    onState: (state, { retryAt, code }) => {
      if (state === 'waiting') waits.push(Math.round((retryAt - Date.now()) / 10) * 10);
      if (state === 'ended') waits.push(`ended ${code}`);
    },
  });
  connection.start();
  for (const code of codes) {
    if (connection.state === 'waiting') connection.check();
    await new Promise((resolve) => setTimeout(resolve));
    sockets.at(-1).onclose({ code, reason: '' });
    if (connection.state === 'ended') break;
  }
  connection.stop();
  window.WebSocket = real;
  return waits;
}"""


async def test_back_off_doubles_to_a_cap_with_full_jitter(page: Page) -> None:
    waits = await page.evaluate(CONNECT, {"codes": [1006] * 9, "random": 1})
    assert waits == [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]
    halves = await page.evaluate(CONNECT, {"codes": [1011] * 3, "random": 0.5})
    assert halves == [250, 500, 1000]


async def test_close_codes_are_acted_on(page: Page) -> None:
    assert await page.evaluate(CONNECT, {"codes": [1001], "random": 1}) == [250]
    assert await page.evaluate(CONNECT, {"codes": [4409], "random": 0}) == [0]
    assert await page.evaluate(CONNECT, {"codes": [4429], "random": 1}) == [10500]
    for code in (4400, 4403):
        assert await page.evaluate(CONNECT, {"codes": [code], "random": 1}) == [f"ended {code}"]


RENDER = """async (text) => {
  const { render } = await import(`${location.origin}/widget/markdown.js`);
  const box = document.createElement('div');
  box.append(render(text));
  return box.innerHTML;
}"""


async def test_light_markdown(page: Page) -> None:
    async def render(text: str) -> str:
        return str(await page.evaluate(RENDER, text))

    assert await render("a **b** *c* _d_ `e*f*`") == (
        "<p>a <strong>b</strong> <em>c</em> <em>d</em> <code>e*f*</code></p>"
    )
    assert await render("one\ntwo\n\nthree") == "<p>one\ntwo</p><p>three</p>"
    assert await render("- a\n- **b**\n\n3. c\n4) d") == (
        '<ul><li>a</li><li><strong>b</strong></li></ul><ol start="3"><li>c</li><li>d</li></ol>'
    )
    assert await render("```py\nx < 1\n```") == "<pre><code>x &lt; 1</code></pre>"
    # what is not finished, or is no Markdown, stays as it was written
    for text in ("2 * 3 * 4", "snake_case_name", "**open", "[a](b", "a*b", "5*", "`x", "**", "~"):
        assert await render(text) == f"<p>{text}</p>"


async def test_links_say_where_they_lead(page: Page) -> None:
    async def link(text: str) -> list[str]:
        html = await page.evaluate(RENDER, text)
        return list(
            await page.evaluate(
                """(html) => {
                  const a = new DOMParser().parseFromString(html, 'text/html').querySelector('a');
                  return a ? [a.textContent, a.getAttribute('href')] : [];
                }""",
                html,
            )
        )

    assert await link("see https://a.example/b.") == ["https://a.example/b", "https://a.example/b"]
    assert await link("(https://a.example/b)") == ["https://a.example/b", "https://a.example/b"]
    assert await link("[our page](https://a.example/)") == ["our page", "https://a.example/"]
    # a text that reads like an address of another site shows the real one
    assert await link("[www.bank.example](https://evil.example/)") == ["https://evil.example/"] * 2
    for text in (
        "[a](javascript:1)",
        "[a](ftp://x.example)",
        "[a](https://u:p@x.example)",
        "[a](/b)",
    ):
        assert await link(text) == []
