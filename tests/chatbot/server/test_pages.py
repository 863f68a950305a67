"""Pages: types, tags, policies, who may embed what; and what surrounds every request."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from chatbot.record.tables import Site
from chatbot.server.pages import frame_ancestors, page_policy
from chatbot.services import Services
from chatbot.tracing import request_span
from tests.chatbot.server.room import Running, running


@pytest.fixture
async def http(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.url) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/widget.js", "text/javascript"),
        ("/widget/client.js", "text/javascript"),
        ("/widget/chat.html", "text/html"),
        ("/widget/style.css", "text/css"),
        ("/desk", "text/html"),
    ],
)
async def test_types_and_tags(http: httpx.AsyncClient, path: str, kind: str) -> None:
    answer = await http.get(path)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == f"{kind}; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.content
    again = await http.get(path, headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304
    assert again.content == b""
    assert (await http.get(path, headers={"If-None-Match": '"other"'})).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/widget/none.js",
        "/widget/..%2fprotocol.py",
        "/widget/../protocol.py",
        "/widget/%2e%2e/errors.py",
        "/widget/",
        "/demo/",
        "/nothing",
    ],
)
async def test_what_is_not_there(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


async def test_only_the_sites_pages_may_embed_the_frame(
    http: httpx.AsyncClient, services: Services
) -> None:
    with services.database.session() as session:
        session.add(
            Site(
                name="shop",
                origins=["https://shop.example", "http://localhost:*"],
                title="",
                welcome="",
                system_prompt="",
                identity_secret="",
                created_at=0,
            )
        )

    async def ancestors(path: str) -> str:
        policy = (await http.get(path)).headers["Content-Security-Policy"]
        (rule,) = (rule for rule in policy.split("; ") if rule.startswith("frame-ancestors"))
        return rule.removeprefix("frame-ancestors ")

    assert (
        await ancestors("/widget/chat.html?site=shop")
        == "'self' https://shop.example http://localhost:*"
    )
    assert await ancestors("/widget/chat.html?site=nowhere") == "'self'"
    assert await ancestors("/widget/chat.html") == "'self'"
    assert await ancestors("/desk") == "'none'"
    assert await ancestors("/") == "'none'"


def test_frame_ancestors_cannot_be_widened() -> None:
    hostile = ["https://a.example; script-src *", "*", "https:", "'self' *", "http://[::1]:*"]
    assert frame_ancestors([*hostile, "https://b.example:8443"]) == [
        "'self'",
        "https://b.example:8443",
    ]


def test_the_policy_of_pages() -> None:
    policy = page_policy("desk.example:8080", ["'none'"])
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "ws://desk.example:8080 wss://desk.example:8080" in policy
    assert page_policy("x; script-src *", ["'none'"]).count("script-src") == 1


async def test_the_demo_page(services: Services, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    folder.mkdir()
    page = folder / "index.html"
    page.write_text('<script src="{{FRONTDESK_URL}}/widget.js" data-site="demo"></script>')
    (folder / "shop.css").write_text("body {}")
    (folder / "secret.txt").write_text("secret")
    (folder / "other.html").write_text("other")
    async with (
        running(services, demo_page=page) as server,
        httpx.AsyncClient(base_url=server.url) as http,
    ):
        assert (await http.get("/demo")).headers["Location"] == "/demo/"
        assert f'src="{server.url}/widget.js"' in (await http.get("/demo/")).text
        assert (await http.get("/demo/shop.css")).headers["Content-Type"].startswith("text/css")
        for name in ("secret.txt", "other.html", "..%2fsecret.txt"):
            assert (await http.get(f"/demo/{name}")).status_code == 404, name
        assert "/demo/" in (await http.get("/")).text


async def test_request_ids(http: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    answer = await http.get(
        "/", headers={"X-Request-Id": "mine-1", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    )
    assert answer.headers["X-Request-Id"] == "mine-1"
    logged = capsys.readouterr().out
    assert "mine-1" in logged
    assert trace in logged
    forged = await http.get("/", headers={"X-Request-Id": "a b\tc"})
    assert forged.headers["X-Request-Id"] != "a b\tc"


def test_malformed_trace_headers_are_replaced() -> None:
    for bad in ("", "00-xyz-b7ad6b7169203331-01", "00-" + "0" * 31 + "-b7ad6b7169203331-01"):
        with request_span("request", bad) as trace_id:
            assert len(trace_id) == 32
            assert trace_id.strip("0")
            assert bad[:10] not in trace_id or not bad


async def test_an_unexpected_exception_is_a_500_without_text(
    server: Running, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr("chatbot.server.visitors.check_issuing", broken)
    monkeypatch.setattr("chatbot.server.visitors._answer", broken)
    answer = await http.post("/v1/visitors", json={"site": "demo"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["error"]["code"] == "internal"


@pytest.mark.parametrize(
    ("site", "origin", "reason"),
    [
        ("demo", "http://localhost:5173", ""),
        ("demo", "https://shop.example", "origin_refused"),
        ("demo", "null", "origin_refused"),
        ("demo", None, "origin_refused"),
        ("none", "http://localhost:5173", "unknown_site"),
        ("", "http://localhost:5173", "unknown_site"),
    ],
)
async def test_a_page_may_ask_whether_it_may_embed_a_site(
    http: httpx.AsyncClient, site: str, origin: str | None, reason: str
) -> None:
    headers = {} if origin is None else {"Origin": origin}
    answer = await http.get("/v1/embedding", params={"site": site}, headers=headers)
    assert answer.status_code == 200
    assert answer.json() == {"allowed": not reason, "reason": reason}
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert answer.headers["Cache-Control"] == "no-store"
