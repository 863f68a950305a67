"""Whatever a model, a visitor, an agent or a site's owner writes is text, on every page."""

from playwright.async_api import Page, Request, expect

from tests.browser.stage import Stage

PAYLOADS = [
    "<script>window.top.canary=1;fetch('https://canary.example/1')</script>",
    "<img src=x onerror=\"fetch('https://canary.example/2');canary=1\">",
    "<svg onload=canary=1><animate onbegin=canary=1 attributeName=x></svg>",
    '<iframe srcdoc="<script>parent.canary=1</script>"></iframe>',
    '<a href="javascript:canary=1">click</a>',
    "[click](javascript:canary=1)",
    "[click](JaVaScRiPt:canary=1)",
    "[click](java\tscript:canary=1)",
    "[click](data:text/html,<script>canary=1</script>)",
    "[click](vbscript:canary)",
    "[click](https://good.example@canary.example/3)",
    "[click](//canary.example/4)",
    "![alt](https://canary.example/5.png)",
    '![alt](x" onerror="canary=1)',
    "**<b onmouseover=canary=1>bold</b>**",
    "`<img src=x onerror=canary=1>`",
    "```\n</code></pre><script>canary=1</script>\n```",
    "```html onload=canary=1\n<script>canary=1</script>",
    "- <details open ontoggle=canary=1>\n- <input autofocus onfocus=canary=1>",
    "1. <video><source onerror=canary=1></video>\n2. <body onload=canary=1>",
    "<style>@import 'https://canary.example/6';*{background:url(https://canary.example/7)}</style>",
    "<link rel=stylesheet href=https://canary.example/8><base href=https://canary.example/>",
    "<meta http-equiv=refresh content='0;url=https://canary.example/9'>",
    "<form action=https://canary.example/10><button formaction=javascript:canary=1>x</button>",
    "<math><mtext></p><script>canary=1</script></mtext></math>",
    "&lt;script&gt;canary=1&lt;/script&gt; &#60;img src=x onerror=canary=1&#62;",
    "[a](https://x.example/\"onmouseover=\"canary=1) [b](https://x.example/'onclick='canary=1)",
    "\u202e<script>canary=1</script>\u202c \ufeff<img src=x onerror=canary=1>",
    "{{constructor.constructor('canary=1')()}} ${canary=1} <%= canary %>",
]
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


async def test_no_text_becomes_anything_but_text(stage: Stage) -> None:
    everything = "\n\n".join(PAYLOADS)
    stage.worker.pieces[:] = [everything[at : at + 97] for at in range(0, len(everything), 97)]
    stage.worker.gate = None
    _set_site(stage, title=PAYLOADS[1], welcome=everything)
    stage.website.attributes = 'data-site="demo"'
    chat = await stage.chat()
    sent = watch(chat.page)
    await chat.send(everything)
    await expect(chat.frame.locator(".from-bot.live")).to_have_count(0)
    await expect(chat.frame.locator(".from-bot:not(.typing)")).to_have_count(2)

    desk = await stage.desk("anna")
    sent_by_desk = watch(desk.page)
    await desk.open_first()
    await desk.claim.click()
    await expect(desk.text).to_be_enabled()
    await desk.text.fill(everything)
    await desk.text.press("Enter")
    await expect(chat.frame.locator(".from-agent")).to_have_count(1)
    await expect(desk.log.locator(".from-agent:not(.pending)")).to_have_count(1)

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
    visitors_words = chat.frame.locator(".from-visitor .bubble")
    assert await visitors_words.evaluate("(node) => node.textContent") == everything
    heading = chat.frame.get_by_role("heading", level=1)
    assert await heading.evaluate("(node) => node.textContent") == PAYLOADS[1]
    assert sent == sent_by_desk == []


async def test_attributes_of_the_tag_are_text(stage: Stage) -> None:
    payload = "\"><img src=x onerror='canary=1'>".replace('"', "&quot;")
    css = "red;} :host{display:block} *{background:url(https://canary.example/)"
    names = ("data-title", "data-color", "data-theme", "data-position", "data-open")
    given = " ".join(f'{name}="{payload} {css}"' for name in names)
    stage.website.attributes = f'data-site="demo" {given}'
    context = await stage.visitor()
    page = await context.new_page()
    sent = watch(page)
    await page.goto(stage.website.url)
    await page.wait_for_function("window.frontdesk?.hasLoaded")
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


def _set_site(stage: Stage, *, title: str, welcome: str) -> None:
    from chatbot.record.tables import Site

    with stage.server.services.database.session() as session:
        site = session.get(Site, "demo")
        assert site is not None
        site.title, site.welcome = title[:100], welcome
        session.commit()
