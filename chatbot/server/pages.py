"""The pages and scripts that browsers load: widget, desk, the demo's shop, and an index.

Files are read once, at start: their tag is a hash of their content, so a browser asks "still the
same?" (RFC 9110 section 13) and never runs a mixture of two releases.
"""

import gzip
import hashlib
import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse

from chatbot.errors import NotAllowed, NotFound, OriginRefused
from chatbot.server.sites import get_site, require_origin
from chatbot.services import Services

WIDGET = Path(__file__).parents[1] / "widget"
TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
URL_MARK = "{{FRONTDESK_URL}}"
_SOURCE = re.compile(r"https?://[A-Za-z0-9._-]+(:([0-9]+|\*))?")
_HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")


@dataclass(frozen=True, slots=True)
class Asset:
    """One file to serve; ``packed`` is the same, gzipped. The tag is weak, as it stands for both
    (RFC 9110 section 8.8.3)."""

    content: bytes
    packed: bytes
    media_type: str
    etag: str


def make_asset(content: bytes, suffix: str) -> Asset:
    if suffix in (".js", ".css"):
        content = without_comments(content.decode()).encode()
    tag = hashlib.sha256(content).hexdigest()[:32]
    packed = gzip.compress(content, 9, mtime=0)
    return Asset(content, packed, TYPES[suffix], f'W/"{tag}"')


_COMMENT = re.compile(
    r"^[ \t]*(?:/\*(?!!)(?:(?!\*/).)*\*/|//[^\n]*)[ \t]*$", re.MULTILINE | re.DOTALL
)


def without_comments(source: str) -> str:
    """JavaScript or CSS without the comments that have lines of their own, which are a quarter of
    what a visitor would load. Every line keeps its number; what begins with ``/*!`` stays."""
    return _COMMENT.sub(lambda found: "\n" * found[0].count("\n"), source)


def load_assets(folder: Path) -> dict[str, Asset]:
    """Every file of a known type in ``folder``, by name. Other files are not for browsers."""
    return {
        path.name: make_asset(path.read_bytes(), path.suffix)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix in TYPES
    }


def answer(request: Request, asset: Asset, headers: dict[str, str] | None = None) -> Response:
    """The file, or 304 when the browser has it. It may keep it but must ask each time."""
    common = {
        "ETag": asset.etag,
        "Cache-Control": "no-cache",
        "Vary": "Accept-Encoding",
        **(headers or {}),
    }
    known = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.etag in known or "*" in known:
        return Response(status_code=304, headers=common)
    if "gzip" in request.headers.get("accept-encoding", ""):
        common["Content-Encoding"] = "gzip"
        return Response(asset.packed, media_type=asset.media_type, headers=common)
    return Response(asset.content, media_type=asset.media_type, headers=common)


def page_policy(host: str, ancestors: Iterable[str]) -> str:
    """Content-Security-Policy (W3C CSP level 3) of our own pages: nothing but our own files, no
    inline script, embedded by ``ancestors`` only. ``host`` is named for sockets, since older
    browsers do not count ``ws:`` as ``'self'``."""
    sockets = f" ws://{host} wss://{host}" if _HOST.fullmatch(host) else ""
    rules = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "font-src": "'self'",
        "connect-src": f"'self'{sockets}",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": " ".join(ancestors) or "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def frame_ancestors(origins: Iterable[str]) -> list[str]:
    """Sources of ``frame-ancestors`` for a site's allowed origins; our own pages may embed the
    frame too (the demo). IPv6 addresses are left out: the policy's grammar has no way to name
    them (CSP level 3 section 2.3.1), so such a page can be reached by name only."""
    return ["'self'", *(origin for origin in origins if _SOURCE.fullmatch(origin))]


def pages_router(demo_page: Path | None) -> APIRouter:
    """All pages. ``demo_page``: an HTML file to serve under ``/demo/`` with its siblings."""
    router = APIRouter(include_in_schema=False)
    widget = load_assets(WIDGET)

    @router.get("/")
    def index(request: Request) -> Response:
        page = make_asset(_index(demo_page is not None).encode(), ".html")
        return answer(request, page, _policy(request, ["'none'"]))

    @router.get("/widget.js")
    def loader(request: Request) -> Response:
        return _widget_file(request, "widget.js")

    @router.get("/assist.js")
    def assist_loader(request: Request) -> Response:
        return _widget_file(request, "assist.js")

    @router.get("/assist")
    def assist(request: Request) -> Response:
        return answer(request, widget["assist.html"], _policy(request, _embedders(request)))

    @router.get("/widget/{name}")
    def widget_file(request: Request, name: str) -> Response:
        return _widget_file(request, name)

    locales = load_assets(WIDGET / "locales")

    @router.get("/widget/locales/{name}")
    def locale_file(request: Request, name: str) -> Response:
        if name not in locales:
            raise NotFound(f"there is no /widget/locales/{name[:64]}")
        return answer(request, locales[name])

    def _widget_file(request: Request, name: str) -> Response:
        asset = widget.get(name)
        if asset is None:
            raise NotFound(f"there is no /widget/{name[:64]}")
        # also for pages with a Cross-Origin-Embedder-Policy
        headers = {"Cross-Origin-Resource-Policy": "cross-origin"}
        if name.endswith(".html"):
            headers |= _policy(request, _embedders(request))
        return answer(request, asset, headers)

    @router.get("/v1/embedding")
    def embedding(request: Request) -> Response:
        return _embedding(request)

    @router.get("/desk")
    def desk(request: Request) -> Response:
        asset = widget.get("desk.html")
        if asset is None:
            raise NotFound("the desk page is not part of this installation")
        return answer(request, asset, _policy(request, ["'none'"]))

    if demo_page is not None:
        _add_demo(router, demo_page)
    return router


def _policy(request: Request, ancestors: list[str]) -> dict[str, str]:
    return {"Content-Security-Policy": page_policy(request.url.netloc, ancestors)}


def _embedders(request: Request) -> list[str]:
    """Who may embed the frame: the origins of the site that its address names."""
    services: Services = request.app.state.room.services
    try:
        site = get_site(services.database, request.query_params.get("site", ""))
    except NotAllowed:
        return frame_ancestors([])  # the page itself will say that there is no such site
    return frame_ancestors(site.origins)


def _embedding(request: Request) -> Response:
    """Whether the asking page may embed the site's frame, and if not why: the script on the page
    cannot see why its frame was refused. Answered to pages of any origin, since it tells them no
    more than the frame's own policy does."""
    services: Services = request.app.state.room.services
    reason = ""
    try:
        site = get_site(services.database, request.query_params.get("site", ""))
        require_origin(
            site,
            request.headers.get("origin", ""),
            request.headers.get("host", ""),
            services.settings.public_url,
        )
    except OriginRefused:
        reason = "origin_refused"
    except NotAllowed:
        reason = "unknown_site"
    return JSONResponse(
        {"allowed": not reason, "reason": reason},
        headers={"Access-Control-Allow-Origin": "*", "Cache-Control": "no-store"},
    )


def _add_demo(router: APIRouter, demo_page: Path) -> None:
    """The shop. It stands for a customer's website, so it has no policy of ours."""
    files = load_assets(demo_page.parent)
    text = demo_page.read_text()

    @router.get("/demo")
    def demo() -> Response:
        return RedirectResponse("/demo/", status_code=308)

    @router.get("/demo/")
    def demo_index(request: Request) -> Response:
        services: Services = request.app.state.room.services
        url = services.settings.public_url or str(request.base_url)
        content = text.replace(URL_MARK, html.escape(url.rstrip("/"), quote=True))
        return answer(request, make_asset(content.encode(), ".html"))

    @router.get("/demo/{name}")
    def demo_file(request: Request, name: str) -> Response:
        if name not in files or name.endswith(".html"):
            raise NotFound(f"there is no /demo/{name[:64]}")
        return answer(request, files[name])


def _index(with_demo: bool) -> str:
    demo = (
        '<li><a href="/demo/">Demo shop</a>: a page with the widget on it</li>' if with_demo else ""
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Frontdesk</title>
<link rel="icon" href="/widget/icon.svg" type="image/svg+xml">
</head>
<body>
<h1>Frontdesk</h1>
<ul>
{demo}
<li><a href="/desk">Agent desk</a>: watch chats and take one over</li>
<li><a href="/docs">API</a>: what programs may call</li>
</ul>
<p>The staff console has an address of its own, which <code>frontdesk up</code> prints.</p>
</body>
</html>
"""
