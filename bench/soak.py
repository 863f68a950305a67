"""Faults under load: visitors chat while sockets are cut and processes are killed.

Starts the whole product in a temporary data directory (loopback only, without the console), lets
scripted visitors chat for a bounded time, and at random moments cuts a visitor's socket, SIGKILLs
the worker or the server. In the end every visitor's view is compared with the log:

* an acknowledged message that is not in the log is *lost*; one that is there twice is *duplicated*;
* a reply whose text on the visitor's screen differs from the log's is *torn*.

``python -m bench.soak [--minutes 3] [--visitors 6]``. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.progress import Progress

from bench.product import children, free_port, running_product
from chatbot.client import Backoff, ChatClient
from chatbot.client_state import Accepted, ReplyEnded, ReplyText

QUESTIONS = (
    "Where is my order?",
    "How long does delivery take?",
    "Can I send a plant back?",
    "My pot arrived broken 😢",
    "What are your opening hours?",
)
REPLY_SECONDS = 120.0  # a reply later than this counts as orphaned


@dataclass(slots=True)
class Visitor:
    """What one visitor sent, was told and saw."""

    conversation_id: str = ""
    acknowledged: Counter[str] = field(default_factory=Counter)  # client_message_id -> offset count
    streamed: dict[str, str] = field(default_factory=dict)  # reply_id -> text put together
    ended: dict[str, str] = field(default_factory=dict)  # reply_id -> text at its end
    longest_wait: float = 0.0  # seconds from a message to the end of its reply
    orphaned: int = 0


async def visit(url: str, visitor: Visitor, until: float, cut: asyncio.Event) -> None:
    """Chat until ``until`` (monotonic seconds); ``cut`` asks for a cut of the socket."""
    rng = random.Random(id(visitor))
    async with ChatClient(url, "demo", backoff=Backoff(base=0.1, most=2.0)) as chat:
        cutter = asyncio.create_task(_cut_when_asked(chat, cut))
        try:
            while time.monotonic() < until:
                await _one_turn(chat, visitor, rng.choice(QUESTIONS))
        finally:
            cutter.cancel()
            visitor.conversation_id = chat.state.conversation_id or ""


async def _cut_when_asked(chat: ChatClient, cut: asyncio.Event) -> None:
    while True:
        await cut.wait()
        cut.clear()
        await chat.drop_connection()


async def _one_turn(chat: ChatClient, visitor: Visitor, text: str) -> None:
    began = time.monotonic()
    message_id = await chat.send(text)
    accepted = False
    try:
        async with asyncio.timeout(REPLY_SECONDS):
            async for update in chat.updates():
                if isinstance(update, Accepted):
                    visitor.acknowledged[update.client_message_id] += 1
                    accepted = accepted or update.client_message_id == message_id
                elif isinstance(update, ReplyText):
                    visitor.streamed[update.reply_id] = update.so_far
                elif isinstance(update, ReplyEnded):
                    visitor.ended[update.reply_id] = update.text
                    if accepted:
                        break
    except TimeoutError:
        visitor.orphaned += 1
    visitor.longest_wait = max(visitor.longest_wait, time.monotonic() - began)


async def break_things(up_pid: int, cuts: list[asyncio.Event], until: float) -> Counter[str]:
    """Inject faults until ``until``; returns how many of each."""
    rng = random.Random(7)
    faults: Counter[str] = Counter()
    while time.monotonic() < until - 5:
        await asyncio.sleep(rng.uniform(0.2, 1.0))
        kind = rng.choices(("cut", "worker", "server"), weights=(20, 1, 1))[0]
        if kind == "cut":
            rng.choice(cuts).set()
        else:
            pids = children(up_pid).get(kind)
            if pids is None:
                continue
            os.kill(pids, signal.SIGKILL)
        faults[kind] += 1
    return faults


async def check(url: str, token: str, visitors: list[Visitor]) -> dict[str, int]:
    """Compare what visitors were told and saw with the log."""
    found = {"acknowledged": 0, "lost": 0, "duplicated": 0, "torn": 0, "gaps": 0}
    async with httpx.AsyncClient(
        base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30
    ) as api:
        for visitor in visitors:
            answer = await api.get(f"/v1/admin/conversations/{visitor.conversation_id}")
            answer.raise_for_status()
            events: list[dict[str, Any]] = answer.json()["events"]
            offsets = [event["offset"] for event in events]
            found["gaps"] += offsets != list(range(1, len(offsets) + 1))
            logged = Counter(
                event["client_message_id"] for event in events if event["type"] == "message.created"
            )
            replies = {e["reply_id"]: e["text"] for e in events if e["type"].startswith("reply.")}
            found["acknowledged"] += len(visitor.acknowledged)
            found["lost"] += sum(1 for key in visitor.acknowledged if key not in logged)
            found["duplicated"] += sum(count - 1 for count in logged.values())
            found["torn"] += sum(
                1 for key, text in visitor.ended.items() if replies.get(key) != text
            )
            # a reply's end may have been missed, its beginning may not have been changed
            found["torn"] += sum(
                1
                for key, text in visitor.streamed.items()
                if not visitor.ended.get(key, text).startswith(text)
            )
    return found


async def soak(minutes: float, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="frontdesk-soak-") as folder:
        data_dir, port = Path(folder), free_port()
        async with running_product(data_dir, port) as product:
            visitors = [Visitor() for _ in range(count)]
            cuts = [asyncio.Event() for _ in visitors]
            until = time.monotonic() + minutes * 60
            with Progress() as bar:
                shown = bar.add_task("soaking", total=minutes * 60)
                async with asyncio.TaskGroup() as group:
                    for visitor, cut in zip(visitors, cuts, strict=True):
                        group.create_task(visit(product.url, visitor, until, cut))
                    breaking = group.create_task(break_things(product.pid, cuts, until))
                    while (left := until - time.monotonic()) > 0:
                        bar.update(shown, completed=minutes * 60 - left)
                        await asyncio.sleep(min(left, 1.0))
            await product.ready()
            return {
                "minutes": minutes,
                "visitors": count,
                "faults": dict(breaking.result()),
                **await check(product.url, product.token, visitors),
                "orphaned": sum(visitor.orphaned for visitor in visitors),
                "longest_wait_s": round(max(visitor.longest_wait for visitor in visitors), 1),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--visitors", type=int, default=6)
    options = parser.parse_args()
    try:
        result = asyncio.run(soak(options.minutes, options.visitors))
    except (subprocess.SubprocessError, httpx.HTTPError) as error:
        sys.exit(f"the soak could not run: {error}")
    print(json.dumps(result))
    if any(result[key] for key in ("lost", "duplicated", "torn", "gaps")):
        sys.exit(1)


if __name__ == "__main__":
    main()
