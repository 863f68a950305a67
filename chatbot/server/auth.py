"""Who is asking: visitors by signed tokens, known customers by their site's JWT, staff by logins.

Visitors. ``POST /v1/visitors`` gives an anonymous visitor a token bound to a site. A customer
whom the site knows brings an identity: a JWT (RFC 7519, HS256, ``sub`` and ``exp`` required) that
the site's own back end signed. What a browser claims otherwise counts for nothing, and an
anonymous visitor is never merged into a known one.

Origins. A browser says in ``Origin`` which page asks; :mod:`chatbot.server.sites` has the rule.
Programs send none. On the socket that is fine, since it needs a token anyway; a token without an
``Origin`` is given only to this machine, or to whoever has the admin API token.
"""

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

import jwt
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from chatbot.errors import NotAllowed, NotAuthenticated, OriginRefused, SettingsError
from chatbot.record.tables import Site
from chatbot.server.sites import get_site, require_origin
from chatbot.server.staff import ROLES, Role, find_staff
from chatbot.services import Services

ALGORITHM = "HS256"
SHORTEST_KEY = 32  # bytes; RFC 7518 section 3.2: as long as the hash
LEEWAY_SECONDS = 10  # clocks of a site's back end and ours
KNOWN_HOURS = 12.0  # a known customer has to be vouched for again after that
API_USER = "api"
MOST_FACTS = 5  # they travel in each token
_REGISTERED = frozenset({"iss", "sub", "aud", "exp", "nbf", "iat", "jti"})


@dataclass(frozen=True, slots=True)
class VisitorClaims:
    """A visitor's token. ``known``: the site vouched for the visitor, and for ``facts`` (a name,
    an address ...). Unix seconds."""

    site: str
    visitor: str
    known: bool
    expires_at: float
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PanelClaims:
    """A panel's token: it opens one call, ``session``, for its agent. Unix seconds."""

    session: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class StaffClaims:
    """A member of staff, or the user ``api`` of the API token. Unix seconds; 0 is never."""

    username: str
    role: Role
    expires_at: float | None


class TokenSigner:
    """Signs and reads the product's own tokens.

    Raises:
        SettingsError: the key is too short.
    """

    def __init__(self, secret_key: str) -> None:
        if len(secret_key.encode()) < SHORTEST_KEY:
            raise SettingsError(
                f"FRONTDESK_SECRET_KEY must have at least {SHORTEST_KEY} bytes; leave it empty "
                "to have one made"
            )
        self._key = secret_key

    def issue_visitor(
        self,
        site: str,
        visitor: str,
        hours: float,
        *,
        known: bool = False,
        facts: Mapping[str, str] | None = None,
    ) -> tuple[str, float]:
        """(token, when it expires in Unix seconds)."""
        claims = {"sub": visitor, "site": site, "known": known, "facts": facts or {}}
        return self._issue("visitor", claims, min(hours, KNOWN_HOURS) if known else hours)

    def read_visitor(self, token: str) -> VisitorClaims:
        """Raises NotAuthenticated: not one of ours, expired, or not a visitor's."""
        claims = self._read("visitor", token, ["site"])
        return VisitorClaims(
            str(claims["site"]),
            claims["sub"],
            bool(claims.get("known")),
            float(claims["exp"]),
            dict(claims.get("facts") or {}),
        )

    def issue_staff(self, username: str, hours: float) -> tuple[str, float]:
        """(token, when it expires in Unix seconds). The role is looked up at each use."""
        return self._issue("staff", {"sub": username}, hours)

    def read_staff(self, token: str) -> tuple[str, float, float]:
        """(username, issued, expires), Unix seconds. Raises as read_visitor."""
        claims = self._read("staff", token, ["iat"])
        return claims["sub"], float(claims["iat"]), float(claims["exp"])

    def issue_panel(self, session: str, minutes: float) -> tuple[str, float]:
        """(token, when it expires in Unix seconds)."""
        return self._issue("panel", {"sub": session}, minutes / 60)

    def read_panel(self, token: str) -> PanelClaims:
        """Raises as read_visitor."""
        claims = self._read("panel", token, [])
        return PanelClaims(claims["sub"], float(claims["exp"]))

    def visitor_id(self, site: str, subject: str) -> str:
        """The visitor that a site's customer is, the same each time; says nothing of the name,
        and the same name on two sites is two visitors."""
        message = f"{len(site)}:{site}:{subject}".encode()
        return "u-" + hmac.new(self._key.encode(), message, hashlib.sha256).hexdigest()[:40]

    def _issue(self, audience: str, claims: dict[str, Any], hours: float) -> tuple[str, float]:
        now = time.time()
        expires = int(now + hours * 3600)
        payload = {**claims, "aud": audience, "iat": now, "exp": expires}
        return jwt.encode(payload, self._key, ALGORITHM), float(expires)

    def _read(self, audience: str, token: str, required: list[str]) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                audience=audience,
                # ``iat`` is a remark (RFC 7519, 4.1.6): who signed it may be a little ahead
                options={"require": ["sub", "exp", *required], "verify_iat": False},
            )
        except jwt.ExpiredSignatureError:
            raise NotAuthenticated("the token has expired: get a new one") from None
        except jwt.InvalidTokenError:
            raise NotAuthenticated(f"this is not a valid {audience} token") from None


def signer_of(services: Services) -> TokenSigner:
    """The signer of this installation's key."""
    return TokenSigner(services.secret_key)


def new_visitor() -> str:
    """The id of a visitor nobody knows."""
    return f"v-{secrets.token_hex(16)}"


def read_identity(site: Site, identity: str) -> tuple[str, dict[str, str]]:
    """The ``sub`` of a customer that the site vouches for, and what else the site says of them.

    Raises:
        NotAuthenticated: the site has no identity secret, or the JWT is blank, wrong, expired,
            without ``exp``, or its ``sub`` is not a string with something in it.
    """
    if not site.identity_secret:
        raise NotAuthenticated(f"the site {site.name} does not identify its customers")
    try:
        claims = jwt.decode(
            identity,
            site.identity_secret,
            algorithms=[ALGORITHM],
            leeway=LEEWAY_SECONDS,
            options={"require": ["sub", "exp"]},
        )
    except jwt.InvalidTokenError as error:
        raise NotAuthenticated(f"the identity is not valid: {type(error).__name__}") from None
    subject = claims["sub"]
    if not isinstance(subject, str) or not subject.strip() or len(subject) > 256:
        raise NotAuthenticated("the identity's sub must be a string of 1 to 256 characters")
    return subject, _facts(claims)


def _facts(claims: Mapping[str, Any]) -> dict[str, str]:
    """Claims that staff may want to see: plain values that RFC 7519 section 4.1 has no use for."""
    plain = [
        (name, str(value))
        for name, value in claims.items()
        if name not in _REGISTERED and isinstance(value, str | int | float)
    ]
    short = [(name, value) for name, value in plain if len(name) <= 64 and len(value) <= 300]
    return dict(short[:MOST_FACTS])


# -- origins


def check_origin(services: Services, site: str, origin: str | None, host: str = "") -> Site:
    """For a socket, which has a token: pages must be on the site's list, programs may come.

    Raises:
        OriginRefused
        NotAllowed: there is no such site (any more).
    """
    found = get_site(services.database, site)
    if origin is not None:
        require_origin(found, origin, host, services.settings.public_url)
    return found


def check_issuing(
    services: Services,
    site: str,
    *,
    origin: str | None,
    host: str = "",
    address: str = "",
    bearer: str = "",
) -> Site:
    """For giving out a visitor's token: pages must be on the site's list; without an ``Origin``
    only this machine (``address`` is the peer's) and the holder of the API token may ask.

    Raises: as :func:`check_origin`.
    """
    found = check_origin(services, site, origin, host)
    if origin is None and not is_loopback(address) and not _is_api_token(services, bearer):
        raise OriginRefused(
            "a visitor's token without an Origin header needs the admin API token (as a bearer "
            "token), unless it is asked for on the server's own machine"
        )
    return found


def is_loopback(address: str) -> bool:
    """Whether an IP address is this machine's own."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


# -- staff


def read_staff(services: Services, token: str) -> StaffClaims:
    """Who has this bearer token: a login, or the API token, which acts as administrator ``api``.
    The account is looked up each time, so a removed one is out at once.

    Raises:
        NotAuthenticated
    """
    if _is_api_token(services, token):
        return StaffClaims(API_USER, "admin", None)
    username, issued, expires = signer_of(services).read_staff(token)
    row = find_staff(services.database, username)
    # an account made anew under an old name does not inherit the old one's logins
    if row is None or issued * 1000 < row.created_at:
        raise NotAuthenticated("this account is no more: log in again")
    return StaffClaims(username, cast(Role, row.role), expires)


def _is_api_token(services: Services, token: str) -> bool:
    if not token or not services.admin_token:
        return False
    return hmac.compare_digest(token.encode(), services.admin_token.encode())


_bearer = HTTPBearer(auto_error=False, description="A staff login's token, or the API token")
Bearer = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def services_of(request: Request) -> Services:
    """The opened stores of the app."""
    return cast(Services, request.app.state.services)


def require_role(role: Role) -> Callable[..., StaffClaims]:
    """A dependency that lets staff with ``role`` or a higher one in, and gives who it is.

    Raises (when called):
        NotAuthenticated, NotAllowed
    """
    least = ROLES.index(role)

    def check(request: Request, credentials: Bearer) -> StaffClaims:
        if credentials is None:
            raise NotAuthenticated("this needs a bearer token: log in first")
        claims = read_staff(services_of(request), credentials.credentials)
        if ROLES.index(claims.role) < least:
            raise NotAllowed(f"this needs the role {role}; you are {claims.role}")
        return claims

    return check
