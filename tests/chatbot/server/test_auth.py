"""Tokens and identities: whose they are, and whose they are not."""

import json
import time
from collections.abc import Callable

import jwt
import pytest

from chatbot.errors import (
    NotAllowed,
    NotAuthenticated,
    OriginRefused,
    SettingsError,
)
from chatbot.record.tables import Site
from chatbot.server.auth import (
    KNOWN_HOURS,
    TokenSigner,
    check_issuing,
    check_origin,
    is_loopback,
    new_visitor,
    read_identity,
    read_staff,
    signer_of,
)
from chatbot.server.staff import create_staff, delete_staff
from chatbot.services import Services
from tests.chatbot.server.room import SECRET

SITE_SECRET = "the shop's own secret, long enough for it"
SIGNER = TokenSigner(SECRET)


def _now() -> int:
    return int(time.time())


def _sign(key: str = SECRET, algorithm: str = "HS256", **claims: object) -> str:
    return jwt.encode(claims, key, algorithm)


def _site(secret: str = SITE_SECRET, name: str = "shop") -> Site:
    return Site(name=name, origins=[], identity_secret=secret)


def test_a_short_key_is_refused() -> None:
    with pytest.raises(SettingsError, match="FRONTDESK_SECRET_KEY"):
        TokenSigner("too short")


def test_a_visitors_token_is_bound_to_its_site() -> None:
    token, expires = SIGNER.issue_visitor("shop", "v-1", 2)
    claims = SIGNER.read_visitor(token)
    assert (claims.site, claims.visitor, claims.known) == ("shop", "v-1", False)
    assert claims.expires_at == expires == pytest.approx(time.time() + 7200, abs=5)


def test_a_token_of_a_server_whose_clock_is_ahead_is_taken() -> None:
    ahead = _now() + 3600
    token = _sign(sub="v-1", site="shop", aud="visitor", iat=ahead, exp=ahead + 3600)
    assert SIGNER.read_visitor(token).visitor == "v-1"


def test_a_known_customers_token_does_not_live_long() -> None:
    token, expires = SIGNER.issue_visitor("shop", "u-1", 24 * 30, known=True)
    assert SIGNER.read_visitor(token).known
    assert expires <= time.time() + KNOWN_HOURS * 3600


def test_audiences_are_kept_apart() -> None:
    visitor, _ = SIGNER.issue_visitor("shop", "admin", 1)
    staff, _ = SIGNER.issue_staff("admin", 1)
    with pytest.raises(NotAuthenticated):
        SIGNER.read_staff(visitor)
    with pytest.raises(NotAuthenticated):
        SIGNER.read_visitor(staff)


def _visitor_claims(**changes: object) -> dict[str, object]:
    claims = {"sub": "v-1", "site": "shop", "aud": "visitor", "exp": _now() + 60} | changes
    return {name: value for name, value in claims.items() if value is not None}


@pytest.mark.parametrize(
    "make",
    [
        lambda: "",
        lambda: "nonsense",
        lambda: _sign(**_visitor_claims(exp=_now() - 1)),
        lambda: _sign(**_visitor_claims(exp=None)),
        lambda: _sign(**_visitor_claims(sub=None)),
        lambda: _sign(**_visitor_claims(site=None)),
        lambda: _sign(**_visitor_claims(aud=None)),
        lambda: _sign(**_visitor_claims(aud="staff")),
        lambda: _sign("another installation's key, long enough", **_visitor_claims()),
        lambda: jwt.encode(_visitor_claims(), "", "none"),
        lambda: _sign(**_visitor_claims())[:-2] + "xx",
    ],
)
def test_wrong_expired_and_foreign_tokens_are_refused(make: Callable[[], str]) -> None:
    with pytest.raises(NotAuthenticated):
        SIGNER.read_visitor(make())


def test_an_expired_token_is_named_so() -> None:
    with pytest.raises(NotAuthenticated, match="expired"):
        SIGNER.read_visitor(_sign(**_visitor_claims(exp=_now() - 1)))


# -- identity


def test_the_sites_back_end_vouches_for_its_customer() -> None:
    claims = {"sub": "42", "exp": _now() + 60, "email": "ada@shop.example", "vip": 1, "list": [1]}
    subject, facts = read_identity(_site(), _sign(SITE_SECRET, **claims))
    assert subject == "42"
    assert facts == {"email": "ada@shop.example", "vip": "1"}


@pytest.mark.parametrize(
    "make",
    [
        lambda: "",
        lambda: "42",
        lambda: _sign(SITE_SECRET, sub="42"),
        lambda: _sign(SITE_SECRET, sub="42", exp=_now() - 60),
        lambda: _sign(SITE_SECRET, exp=_now() + 60),
        lambda: _sign(SITE_SECRET, sub="", exp=_now() + 60),
        lambda: _sign(SITE_SECRET, sub="   ", exp=_now() + 60),
        lambda: _sign(SITE_SECRET, sub="x" * 257, exp=_now() + 60),
        lambda: _sign("another site's secret, long enough for it", sub="42", exp=_now() + 60),
        lambda: jwt.encode({"sub": "42", "exp": _now() + 60}, "", "none"),
        lambda: jwt.encode({"sub": "42", "exp": _now() + 60}, SITE_SECRET + "x" * 64, "HS512"),
    ],
)
def test_what_the_site_did_not_sign_counts_for_nothing(make: Callable[[], str]) -> None:
    with pytest.raises(NotAuthenticated):
        read_identity(_site(), make())


def test_a_number_is_no_sub() -> None:
    """1 and "1" must never be the same customer."""
    payload = {"sub": 1, "exp": _now() + 60}
    token = jwt.api_jws.encode(json.dumps(payload).encode(), SITE_SECRET, "HS256")
    with pytest.raises(NotAuthenticated):
        read_identity(_site(), token)


@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
def test_a_site_without_a_secret_identifies_nobody() -> None:
    """Also not with a token signed by the blank key."""
    for identity in ("", _sign(" ", sub="42", exp=_now() + 60)):
        with pytest.raises(NotAuthenticated, match="does not identify"):
            read_identity(_site(""), identity)


def test_a_customer_is_one_visitor_per_site_and_never_an_anonymous_one() -> None:
    ids = {SIGNER.visitor_id(site, name) for site in ("a", "b") for name in ("1", "01", "")}
    assert len(ids) == 6
    assert SIGNER.visitor_id("a", "1") == SIGNER.visitor_id("a", "1")
    # a name that continues the site's is another pair
    assert SIGNER.visitor_id("a", "b:1") != SIGNER.visitor_id("a:b", "1")
    assert all(name.startswith("u-") for name in ids)
    assert new_visitor().startswith("v-")
    assert new_visitor() != new_visitor()


# -- origins


def test_a_socket_needs_a_listed_page_or_none(services: Services) -> None:
    check_origin(services, "demo", "http://localhost:5000")
    check_origin(services, "demo", None)
    with pytest.raises(OriginRefused):
        check_origin(services, "demo", "https://evil.example")
    with pytest.raises(OriginRefused):
        check_origin(services, "demo", "")
    with pytest.raises(NotAllowed, match="no site"):
        check_origin(services, "gone", "http://localhost:5000")


def test_a_token_without_an_origin_is_for_this_machine_or_the_api_token(
    services: Services,
) -> None:
    for allowed in (
        {"address": "127.0.0.1"},
        {"address": "::1"},
        {"address": "203.0.113.7", "bearer": "an-api-token"},
    ):
        assert check_issuing(services, "demo", origin=None, **allowed).name == "demo"
    for refused in ({}, {"address": "203.0.113.7"}, {"bearer": "an-api-toke"}):
        with pytest.raises(OriginRefused, match="API token"):
            check_issuing(services, "demo", origin=None, **refused)
    with pytest.raises(OriginRefused):
        check_issuing(services, "demo", origin="https://evil.example", address="127.0.0.1")


def test_loopback_addresses() -> None:
    assert is_loopback("127.8.8.8")
    assert not is_loopback("10.0.0.1")
    assert not is_loopback("testclient")


# -- staff


def test_a_login_is_looked_up_at_each_use(services: Services) -> None:
    create_staff(services.database, "t", "ada", "correct horse", "reviewer")
    token, expires = signer_of(services).issue_staff("ada", 1)
    claims = read_staff(services, token)
    assert (claims.username, claims.role, claims.expires_at) == ("ada", "reviewer", expires)
    delete_staff(services.database, "t", "ada")
    with pytest.raises(NotAuthenticated, match="no more"):
        read_staff(services, token)


def test_an_account_made_anew_does_not_take_over_old_logins(services: Services) -> None:
    issued = _now() - 3600
    token = _sign(sub="ada", aud="staff", iat=issued, exp=_now() + 3600)
    create_staff(services.database, "t", "ada", "correct horse", "admin")
    with pytest.raises(NotAuthenticated, match="no more"):
        read_staff(services, token)


def test_the_api_token_acts_as_an_administrator(services: Services) -> None:
    claims = read_staff(services, "an-api-token")
    assert (claims.username, claims.role, claims.expires_at) == ("api", "admin", None)
    for wrong in ("", "an-api-tokeN", "an-api-token "):
        with pytest.raises(NotAuthenticated):
            read_staff(services, wrong)
