"""``POST /v1/visitors``: who gets a token, and for whom."""

import time
from typing import Any

import httpx
import jwt
import pytest

from chatbot.record.tables import Site
from chatbot.server.auth import signer_of
from chatbot.services import Services
from tests.chatbot.server.room import ORIGIN, Running, chat_tab, make_services, running

IDENTITY_SECRET = "the shop's own secret of 32 bytes or more"


@pytest.fixture
def shop(services: Services) -> str:
    """A site that identifies its customers."""
    with services.database.session() as session:
        session.add(
            Site(
                name="shop",
                origins=["https://shop.example"],
                title="The shop",
                welcome="Hello!",
                system_prompt="",
                identity_secret=IDENTITY_SECRET,
                created_at=0,
            )
        )
    return "https://shop.example"


async def _ask(
    server: Running, origin: str | None, headers: dict[str, str] | None = None, **body: Any
) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.post(
            f"{server.url}/v1/visitors",
            json=body,
            headers={**({"Origin": origin} if origin else {}), **(headers or {})},
        )


def _identity(subject: Any, secret: str = IDENTITY_SECRET, **claims: Any) -> str:
    payload = {"sub": subject, "exp": time.time() + 60, **claims}
    return jwt.encode(payload, secret, "HS256")


async def test_a_new_visitor(server: Running, shop: str) -> None:
    answer = await _ask(server, shop, site="shop")
    assert answer.status_code == 200
    body = answer.json()
    assert body["site"] == {
        "title": "The shop",
        "welcome": "Hello!",
        "quick_replies": [],
        "link_hosts": [],
        "consent": False,
        "privacy_url": "",
        "offline_form": True,
        "max_chars": 8000,
        "open": True,
        "opens_at": None,
    }
    claims = signer_of(server.services).read_visitor(body["token"])
    assert (claims.site, claims.visitor, claims.known) == ("shop", body["visitor_id"], False)
    assert body["expires_at"] == pytest.approx(claims.expires_at * 1000, abs=1000)
    days = (body["expires_at"] / 1000 - time.time()) / 86400
    assert days == pytest.approx(30, abs=0.1)
    other = (await _ask(server, shop, site="shop")).json()
    assert other["visitor_id"] != body["visitor_id"]


async def test_an_earlier_token_keeps_the_visitor(server: Running, shop: str) -> None:
    first = (await _ask(server, shop, site="shop")).json()
    again = (await _ask(server, shop, site="shop", visitor_token=first["token"])).json()
    assert again["visitor_id"] == first["visitor_id"]


async def test_a_token_that_is_not_valid_is_refused(server: Running, shop: str) -> None:
    signer = signer_of(server.services)
    for token in (
        "",
        "x.y.z",
        signer.issue_visitor("shop", "v-1", -1)[0],
        signer.issue_visitor("demo", "v-1", 1)[0],
        signer.issue_staff("anna", 1)[0],
    ):
        answer = await _ask(server, shop, site="shop", visitor_token=token)
        assert answer.status_code == 401, token
        assert answer.json()["error"]["code"] == "not_authenticated"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://shop.example"])
async def test_a_page_of_another_origin_gets_no_token(
    server: Running, shop: str, origin: str
) -> None:
    answer = await _ask(server, origin, site="shop")
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "origin_refused"


async def test_no_such_site(server: Running) -> None:
    assert (await _ask(server, ORIGIN, site="nowhere")).status_code == 403


async def test_our_own_frame_may_ask(server: Running, shop: str) -> None:
    """The widget's frame comes from this server, whatever page embeds it."""
    assert (await _ask(server, server.url, site="shop")).status_code == 200


async def test_a_known_customer(server: Running, shop: str) -> None:
    anonymous = (await _ask(server, shop, site="shop")).json()
    known = (
        await _ask(
            server,
            shop,
            site="shop",
            identity=_identity("customer-1"),
            visitor_token=anonymous["token"],
        )
    ).json()
    assert known["visitor_id"] != anonymous["visitor_id"]  # never merged
    again = (await _ask(server, shop, site="shop", identity=_identity("customer-1"))).json()
    assert again["visitor_id"] == known["visitor_id"]
    other = (await _ask(server, shop, site="shop", identity=_identity("customer-2"))).json()
    assert other["visitor_id"] != known["visitor_id"]
    # the same customer on two devices meets in one conversation
    ids = set()
    for token in (known["token"], again["token"]):
        async with chat_tab(server, token, origin=shop) as tab:
            ids.add(tab.welcome["conversation_id"])
    assert len(ids) == 1
    # a renewal without the site's word does not live longer
    renewed = (await _ask(server, shop, site="shop", visitor_token=known["token"])).json()
    assert renewed["visitor_id"] == known["visitor_id"]
    assert renewed["expires_at"] <= known["expires_at"] + 1000


async def test_identities_that_are_not_valid(server: Running, shop: str) -> None:
    for identity in (
        "",
        "x.y.z",
        _identity("customer-1", secret="another secret of 32 bytes or more!!"),
        _identity(""),
        _identity("customer-1", exp=time.time() - 60),
        jwt.encode({"sub": "customer-1"}, IDENTITY_SECRET, "HS256"),
        signer_of(server.services).issue_visitor("shop", "v-1", 1)[0],
    ):
        answer = await _ask(server, shop, site="shop", identity=identity)
        assert answer.status_code == 401, identity
    assert (
        await _ask(server, ORIGIN, site="demo", identity=_identity("customer-1"))
    ).status_code == 401  # the demo site identifies nobody


async def test_too_many_requests_from_one_address(redis: Any, database: Any, tmp_path: Any) -> None:
    services = make_services(redis, database, tmp_path, visitors_per_minute=2)
    async with running(services) as server:
        statuses = [(await _ask(server, ORIGIN, site="demo")).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        limited = await _ask(server, ORIGIN, site="demo")
        assert int(limited.headers["Retry-After"]) >= 1
        assert limited.json()["error"]["code"] == "rate_limited"


@pytest.mark.parametrize(
    "body", [{}, {"site": ""}, {"site": 1}, {"site": "demo", "more": 1}, {"site": "x" * 65}]
)
async def test_malformed_requests(server: Running, body: dict[str, Any]) -> None:
    answer = await _ask(server, ORIGIN, **body)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "bad_request"
