"""A small server that speaks Chatwoot's API on a real socket, and signs webhooks as it does."""

import hashlib
import hmac
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

TOKEN, SECRET = "the bot's token", "the webhooks' secret"
ACCOUNT, CONVERSATION = 3, 7
Json = dict[str, Any]


@dataclass
class Chatwoot:
    """One account with one conversation. ``faults``: what the next posts meet, in order: a status
    to answer, ``lost`` (taken, and the connection breaks), ``last`` (the same, and from then on
    it is ``down``) or ``cut`` (it breaks before)."""

    port: int = 0
    status: str = "pending"
    messages: list[Json] = field(default_factory=list)
    faults: list[int | str] = field(default_factory=list)
    readable: tuple[str, ...] = ("messages", "")  # what the bot's token may read
    calls: list[tuple[str, str]] = field(default_factory=list)
    down: bool = False
    elsewhere: str = ""  # answer a post with a redirect to it
    _ids: int = 100

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def replies(self) -> list[str]:
        """What the bot said to the customer."""
        return [m["content"] for m in self.messages if m["message_type"] == 1]

    def add(self, content: str | None, message_type: int, sender: Json) -> Json:
        self._ids += 1
        message = {
            "id": self._ids,
            "content": content,
            "message_type": message_type,
            "private": False,
            "sender": sender,
        }
        self.messages.append(message)
        return message

    def conversation(self, **more: Any) -> Json:
        contact = {"id": 11, "name": "Cleo", "type": "contact"}
        meta = {"sender": contact, "assignee": None}
        return {"id": CONVERSATION, "status": self.status, "inbox_id": 1, "meta": meta, **more}

    def webhook(self, message: Json, **more: Any) -> Json:
        """``message_created``."""
        kind = ["incoming", "outgoing", "activity", "template"][message["message_type"]]
        return {
            "event": "message_created",
            **message,
            "message_type": kind,
            "conversation": self.conversation(),
            "account": {"id": ACCOUNT, "name": "Acme"},
            **more,
        }

    def says(self, content: str | None) -> Json:
        """The customer writes; the webhook of it."""
        return self.webhook(self.add(content, 0, {"id": 11, "name": "Cleo", "type": "contact"}))

    def agent_says(self, name: str, content: str, **more: Any) -> Json:
        message = {**self.add(content, 1, {"id": 5, "name": name, "type": "user"}), **more}
        return self.webhook(message)

    def answer(self, method: str, path: str, body: Json) -> tuple[int, Json] | None:
        """(status, JSON); None: the connection breaks."""
        found = re.fullmatch(
            rf"/chat/api/v1/accounts/{ACCOUNT}/conversations/{CONVERSATION}/?(\w*)", path
        )
        if found is None:
            return 404, {"error": "Resource could not be found"}
        self.calls.append((method, found[1]))
        if self.down:
            return 503, {"error": "down"}
        if method == "GET":
            if found[1] not in self.readable:
                return 401, {"error": "Access to this endpoint is not authorized for bots"}
            if found[1] == "messages":
                return 200, {"payload": self.messages}
            return 200, self.conversation(messages=self.messages[-1:])
        fault = self.faults.pop(0) if self.faults else None
        if fault == "cut":
            return None
        if isinstance(fault, int):
            return fault, {"error": "fault"}
        if found[1] == "messages":
            self.add(body["content"], 1, {"id": 2, "name": "Bot", "type": "agent_bot"})
        elif found[1] == "toggle_status":
            self.status = body["status"]
        self.down = fault == "last"
        return None if fault in ("lost", "last") else (200, {"id": self._ids})


@contextmanager
def chatwoot() -> Iterator[Chatwoot]:
    """Serve in a thread until the block ends."""
    place = Chatwoot()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(size) or b"{}")
            if self.headers.get("api_access_token") != TOKEN:
                self._send(401, {"error": "Invalid Access Token"})
            elif place.elsewhere and self.command == "POST":
                self.send_response(307)
                self.send_header("Location", place.elsewhere)
                self.end_headers()
            else:
                found = place.answer(self.command, self.path, body)
                if found is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                else:
                    self._send(*found)

        do_GET = do_POST = _serve

        def _send(self, status: int, body: Json) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    place.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield place
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def signed(
    body: bytes, delivery: str, *, secret: str = SECRET, at: float | None = None
) -> dict[str, str]:
    """Headers of a webhook."""
    stamp = str(int(time.time() if at is None else at))
    mac = hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    return {
        "X-Chatwoot-Signature": f"sha256={mac}",
        "X-Chatwoot-Timestamp": stamp,
        "X-Chatwoot-Delivery": delivery,
        "Content-Type": "application/json",
    }


async def deliver(url: str, payload: Json, delivery: str, **how: Any) -> httpx.Response:
    """Send a webhook as Chatwoot does."""
    body = json.dumps(payload).encode()
    async with httpx.AsyncClient() as http:
        return await http.post(
            f"{url}/v1/chatwoot/demo", content=body, headers=signed(body, delivery, **how)
        )
