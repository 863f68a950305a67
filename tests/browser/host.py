"""The customer's website: pages of another origin, under a strict Content-Security-Policy."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>Shop</title></head>
<body><main><h1>Shop</h1><p>Plants.</p><button id="before">A button of the shop</button></main>
<script src="{url}/widget.js" {attributes} async></script>
</body></html>"""

# an agent's desktop of somebody else, with the call panel in it
DESKTOP = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Desktop</title>
<style>body {{ margin: 0; display: flex; height: 100vh }} main {{ flex: 1; padding: 1rem }}
#side {{ width: 400px; border-left: 1px solid #ccc }}</style></head>
<body><main><h1>Call centre</h1><label>Notes <textarea id="answer"></textarea></label></main>
<div id="side"></div>
<script src="{url}/assist.js" data-site="demo" data-target="#side" async></script>
</body></html>"""

# what Chatwoot's page does around a dashboard app
CHATWOOT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Chatwoot</title></head>
<body><iframe title="Frontdesk" width="400" height="700"
src="{url}/assist?site=demo&amp;chatwoot={origin}"></iframe></body></html>"""


@dataclass
class Website:
    """Serves one page at ``/``, and at ``/desktop`` and ``/chatwoot`` others. ``port`` is under
    127.0.0.1 and localhost alike."""

    frontdesk: str
    port: int = 0
    attributes: str = 'data-site="demo"'
    extra_policy: str = ""
    frames: str = ""  # other than Frontdesk's own address
    requests: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def other_site_url(self) -> str:
        """The same page on a host that browsers count as another site than Frontdesk's."""
        return f"http://localhost:{self.port}"

    def policy(self) -> str:
        """What a careful website allows: our script and our frame, and nothing else at all."""
        return (
            f"default-src 'none'; script-src {self.frontdesk}; "
            f"frame-src {self.frames or self.frontdesk}{self.extra_policy}"
        )

    def page(self, path: str) -> bytes:
        text = {"/desktop": DESKTOP, "/chatwoot": CHATWOOT}.get(path, PAGE)
        return text.format(url=self.frontdesk, attributes=self.attributes, origin=self.url).encode()


@contextmanager
def website(frontdesk: str) -> Iterator[Website]:
    """Serve in a thread until the block ends."""
    site = Website(frontdesk)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests.append(self.path)
            path = self.path.split("?")[0]
            found = path in ("/", "/other", "/desktop", "/chatwoot")
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Security-Policy", site.policy())
            self.end_headers()
            self.wfile.write(site.page(path) if found else b"")

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
