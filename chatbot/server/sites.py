"""Sites and the web origins that may use them.

An entry of a site's list is an exact origin (RFC 6454 section 6.2: scheme, host and port, as
browsers send it), e.g. ``https://shop.example``, or a loopback origin with any port:
``http://localhost:*``, ``http://127.0.0.1:*``, ``http://[::1]:*``.
"""

import hmac
import ipaddress
import re
from urllib.parse import urlsplit

from chatbot.errors import NotAllowed, OriginRefused, RequestRefused
from chatbot.record.clock import now_ms
from chatbot.record.database import Database
from chatbot.record.tables import Site

ANY_PORT = ("http://localhost:*", "http://127.0.0.1:*", "http://[::1]:*")
DEMO = "demo"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?)", re.IGNORECASE)


def ensure_demo_site(database: Database) -> None:
    """Have the site ``demo``, open to pages on this machine; an existing one is left as it is."""
    with database.exclusive_session("sites") as session:
        if session.get(Site, DEMO) is None:
            session.add(
                Site(
                    name=DEMO,
                    origins=list(ANY_PORT),
                    title="Demo",
                    welcome="",
                    system_prompt="",
                    identity_secret="",
                    widget={},
                    created_at=now_ms(),
                )
            )


def get_site(database: Database, name: str) -> Site:
    """Raises NotAllowed: there is no such site."""
    with database.session() as session:
        site = session.get(Site, name)
    if site is None:
        raise NotAllowed(f"there is no site {name!r}: create it in the console or by the API")
    return site


def normal_origin(entry: str) -> str:
    """An entry of a site's list in the form that it is compared in. An address that was copied
    from a browser ends with a slash: that is taken off.

    Raises:
        RequestRefused: not an origin; says what one looks like.
    """
    entry = entry.strip().removesuffix("/")
    if entry in ANY_PORT:
        return entry
    origin = _normal(entry)
    if origin is None:
        raise RequestRefused(
            f"{entry!r} is not an origin: give scheme and host, e.g. https://shop.example, without "
            f"a path, or one of {', '.join(ANY_PORT)}"
        )
    return origin


def require_origin(site: Site, origin: str, host: str, public_url: str) -> None:
    """Let a page of ``origin`` use the site: it is on the site's list, or one of our own pages
    (the widget's frame, the demo) asks. ``host`` is the request's Host header.

    Raises:
        OriginRefused
    """
    normal = _normal(origin)
    if normal is not None and (_listed(normal, site.origins) or _own(normal, host, public_url)):
        return
    raise OriginRefused(
        f"pages of {origin[:200]!r} may not use the site {site.name!r}: add the origin to its list"
    )


def _listed(origin: str, entries: list[str]) -> bool:
    parts = urlsplit(origin)
    any_port = f"{parts.scheme}://{_bracketed(parts.hostname or '')}:*"
    # constant time is not needed for public values, but costs nothing
    found = [hmac.compare_digest(origin.encode(), entry.encode()) for entry in entries]
    return any(found) or (any_port in ANY_PORT and any_port in entries)


def _own(origin: str, host: str, public_url: str) -> bool:
    """Our own page. A Host header alone proves nothing: a name that an attacker owns may point
    at this server (DNS rebinding). So it must be the configured address or no name at all."""
    if public_url and origin == _normal(public_url, path_allowed=True):
        return True
    parts = urlsplit(origin)
    if _normal(f"{parts.scheme}://{host}") != origin:
        return False
    name = parts.hostname or ""
    return name == "localhost" or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _normal(text: str, path_allowed: bool = False) -> str | None:
    """``scheme://host[:port]`` in lower case without the default port; None when it is none."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or parts.username is not None or not parts.hostname:
        return None
    rest = "" if path_allowed and not parts.query else parts.path + parts.query + parts.fragment
    host = _bracketed(parts.hostname)
    if rest or not _HOST.fullmatch(host) or text.endswith(("?", "#")):
        return None
    suffix = "" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{host}{suffix}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
