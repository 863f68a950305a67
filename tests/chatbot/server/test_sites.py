"""Which pages may use a site."""

import pytest

from chatbot.errors import NotAllowed, OriginRefused, RequestRefused
from chatbot.record.database import Database
from chatbot.record.tables import Site
from chatbot.server.sites import ensure_demo_site, get_site, normal_origin, require_origin

SHOP = "https://shop.example"
ANY = "http://localhost:*"


def _allowed(origin: str, *entries: str, host: str = "desk.example", public_url: str = "") -> bool:
    site = Site(name="shop", origins=list(entries))
    try:
        require_origin(site, origin, host, public_url)
    except OriginRefused:
        return False
    return True


@pytest.mark.parametrize(
    ("origin", "entry", "allowed"),
    [
        (SHOP, SHOP, True),
        ("HTTPS://Shop.Example:443", SHOP, True),
        ("http://shop.example", SHOP, False),
        ("https://shop.example:8443", SHOP, False),
        ("https://shop.example.evil.com", SHOP, False),
        ("https://evil-shop.example", SHOP, False),
        ("https://shop.example@evil.com", SHOP, False),
        ("https://shop.example/", SHOP, False),
        ("null", SHOP, False),
        ("", SHOP, False),
        ("file://", SHOP, False),
        ("http://localhost:5173", ANY, True),
        ("http://localhost", ANY, True),
        ("https://localhost:5173", ANY, False),
        ("http://127.0.0.1:80", ANY, False),
        ("http://localhost.evil.com:80", ANY, False),
        ("http://127.0.0.1:99", "http://127.0.0.1:*", True),
        ("http://[::1]:99", "http://[::1]:*", True),
        ("http://shop.example:1", "http://shop.example:*", False),
    ],
)
def test_the_list_decides(origin: str, entry: str, allowed: bool) -> None:
    assert _allowed(origin, entry) is allowed


@pytest.mark.parametrize(
    ("origin", "host", "public_url", "allowed"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", "", True),
        ("http://192.168.1.7:8080", "192.168.1.7:8080", "", True),
        ("http://localhost:8080", "localhost:8080", "", True),
        ("http://127.0.0.1:8081", "127.0.0.1:8080", "", False),
        # a name that points at us proves nothing (DNS rebinding)
        ("http://evil.example:8080", "evil.example:8080", "", False),
        ("https://desk.example", "desk.example", "https://desk.example/", True),
        ("https://other.example", "other.example", "https://desk.example", False),
    ],
)
def test_our_own_pages_may_use_every_site(
    origin: str, host: str, public_url: str, allowed: bool
) -> None:
    assert _allowed(origin, host=host, public_url=public_url) is allowed


@pytest.mark.parametrize(
    ("entry", "normal"),
    [
        ("https://Shop.Example:443", SHOP),
        (" https://shop.example ", SHOP),
        ("https://shop.example/", SHOP),
        ("http://127.0.0.1:9321/", "http://127.0.0.1:9321"),
        ("http://localhost:*/", "http://localhost:*"),
        ("http://shop.example:8080", "http://shop.example:8080"),
        (ANY, ANY),
    ],
)
def test_entries_are_kept_as_browsers_send_them(entry: str, normal: str) -> None:
    assert normal_origin(entry) == normal


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        "shop.example",
        "https://*",
        "https://*.example",
        "https://shop.example/chat",
        "https://shop.example/chat/",
        "https://shop.example//",
        "https://shop.example?/",
        "https://shop.example#/",
        "https:///",
        "https://shop.example?x",
        "ftp://shop.example",
        "https://me@shop.example",
        "https://shop.example:port",
        "javascript:alert(1)",
        "http://shop.example; script-src *",
        "",
    ],
)
def test_what_is_no_origin_is_refused(entry: str) -> None:
    with pytest.raises(RequestRefused, match="is not an origin"):
        normal_origin(entry)


def test_the_demo_site_is_for_this_machine_and_left_as_it_is(database: Database) -> None:
    ensure_demo_site(database)
    with database.session() as session:
        site = session.get(Site, "demo")
        assert site is not None
        assert "http://127.0.0.1:*" in site.origins
        site.title = "Mine"
    ensure_demo_site(database)
    assert get_site(database, "demo").title == "Mine"


def test_an_unknown_site_is_refused(database: Database) -> None:
    with pytest.raises(NotAllowed, match="no site 'none'"):
        get_site(database, "none")
