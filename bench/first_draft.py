"""How long an agent waits for drafts, by the clock: through server, store and worker.

    python -m bench.first_draft --data-dir D --version V [--chats 12] [--turns 6]

Starts the product with that version live, and its run's training dialogues to retrieve from. A
visitor who was handed to a person says what visitors of ``star-val`` really said; a desk that holds
the conversation answers with the agent's real words. Measured from the moment the visitor's message
is sent until the desk has the first draft, and until it has the model's own, whole. Turns from the
second on find the conversation's cache warm. The last line is JSON.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.progress import track
from websockets.asyncio.client import ClientConnection, connect

from bench.assist import read
from bench.peers.ours import MERGE_SECONDS, install_version, installed_runtime
from bench.product import Product, free_port, running_product

VAL = "star-val.jsonl.gz"
SECONDS = 60.0  # that anything may take
AGENT = {"username": "agent", "password": "as long as it has to be"}


@dataclass(slots=True)
class Waits:
    """Milliseconds."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "turns": len(self.first),
            "first_draft_ms_p50": round(statistics.median(self.first), 1),
            "first_draft_ms_max": round(max(self.first), 1),
            "whole_ms_p50": round(statistics.median(self.whole), 1),
        }


class Tab:
    """One open socket."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def send(self, kind: str, **fields: Any) -> None:
        await self._socket.send(json.dumps({"type": kind, **fields}))

    async def until(self, kind: str, **wanted: Any) -> dict[str, Any]:
        """The next frame of this type with these fields. Raises TimeoutError, RuntimeError."""
        async with asyncio.timeout(SECONDS):
            while True:
                frame: dict[str, Any] = json.loads(await self._socket.recv())
                if frame["type"] == "error":
                    raise RuntimeError(f"the server refused: {frame}")
                if frame["type"] == kind and wanted.items() <= frame.items():
                    return frame


@asynccontextmanager
async def tab(url: str, path: str, token: str) -> AsyncIterator[tuple[Tab, dict[str, Any]]]:
    """An open socket and the welcome it got."""
    address = f"ws{url.removeprefix('http')}{path}"
    async with connect(address, origin="http://localhost:5000", max_size=None) as socket:
        opened = Tab(socket)
        await opened.send("hello", token=token)
        yield opened, await opened.until("welcome")


async def converse(
    desk: Tab, visitor: Tab, name: str, pairs: list[tuple[str, str]], found: list[Waits]
) -> None:
    """One conversation; what was waited goes to the turn's own place in ``found``."""
    await visitor.send("handoff.request")
    await visitor.until("status.changed", status="waiting")
    await desk.send("conversation.watch", conversation_id=name)
    await desk.until("conversation.watched", conversation_id=name)
    await desk.send("conversation.claim", conversation_id=name)
    await visitor.until("status.changed", status="human")
    for turn, ((question, answer), waits) in enumerate(zip(pairs, found, strict=False)):
        began = time.perf_counter()
        await visitor.send("message.send", client_message_id=f"v{turn}", text=question)
        upto = (await visitor.until("message.accepted"))["offset"]
        drafts: dict[str, Any] = {"drafts": []}
        while not drafts["drafts"]:
            drafts = await desk.until("suggestions", conversation_id=name, upto=upto)
        waits.first.append(1000 * (time.perf_counter() - began))
        while not drafts["complete"]:
            drafts = await desk.until("suggestions", conversation_id=name, upto=upto)
        waits.whole.append(1000 * (time.perf_counter() - began))
        await desk.send(
            "message.send", conversation_id=name, client_message_id=f"a{turn}", text=answer
        )
        await visitor.until("message.created", role="agent")
    await desk.send("conversation.close", conversation_id=name)
    await visitor.until("status.changed", status="closed")


def pairs_of(dialogue: dict[str, Any]) -> list[tuple[str, str]]:
    """(visitor, agent) where one follows the other."""
    said = [(m["role"], m["content"]) for m in dialogue["messages"] if m["role"] != "tool"]
    return [
        (text, answer)
        for (role, text), (next_role, answer) in itertools.pairwise(said)
        if role == "user" and next_role == "assistant" and text.strip() and answer.strip()
    ]


async def _login(http: httpx.AsyncClient, admin_token: str) -> str:
    """The token of an agent who was just hired."""
    admin = {"Authorization": f"Bearer {admin_token}"}
    staff = {**AGENT, "role": "agent"}
    (await http.post("/v1/admin/staff", json=staff, headers=admin)).raise_for_status()
    answer = await http.post("/v1/admin/login", json=AGENT)
    return str(answer.raise_for_status().json()["token"])


async def measure(product: Product, options: argparse.Namespace) -> list[Waits]:
    """By turn."""
    found = [Waits() for _ in range(options.turns)]
    dialogues = filter(lambda pairs: len(pairs) >= options.turns, map(pairs_of, read(VAL)))
    places = track(range(options.chats + 1), "conversations", disable=not sys.stderr.isatty())
    async with (
        httpx.AsyncClient(base_url=product.url, timeout=SECONDS) as http,
        tab(product.url, "/v1/desk", await _login(http, product.token)) as (desk, _),
    ):
        for place, pairs in zip(places, dialogues, strict=False):
            answer = await http.post("/v1/visitors", json={"site": "demo"})
            token = answer.raise_for_status().json()["token"]
            # the first conversation is not counted: the index is built, the version merged
            waits = found if place else [Waits() for _ in found]
            async with tab(product.url, "/v1/chat", token) as (visitor, welcome):
                await converse(desk, visitor, welcome["conversation_id"], pairs, waits)
            if not place:
                await asyncio.sleep(MERGE_SECONDS)
    return found


async def run(options: argparse.Namespace) -> dict[str, Any]:
    runtime = installed_runtime(options.runtime)
    environment = {**os.environ, "FRONTDESK_LOG_LEVEL": "warning", "FRONTDESK_ENGINE": runtime}
    with tempfile.TemporaryDirectory(prefix="frontdesk-bench-") as name:
        folder = Path(name)
        install_version(folder, options.data_dir / "artifacts" / "versions" / options.version)
        async with running_product(folder, free_port(), environment=environment) as product:
            by_turn = await measure(product, options)
    first, *others = by_turn
    later = Waits([ms for w in others for ms in w.first], [ms for w in others for ms in w.whole])
    print("first draft by turn, ms:", [round(statistics.median(w.first), 1) for w in by_turn])
    return {
        "bench": "first_draft",
        "version": options.version,
        "runtime": runtime,
        "chats": options.chats,
        "turn_1": first.as_dict(),
        "later_turns": later.as_dict(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--version", required=True)
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--chats", type=int, default=12)
    parser.add_argument("--turns", type=int, default=6)
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
