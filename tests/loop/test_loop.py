"""The whole loop with real parts, on real transcripts: train, promote, chat, correct in the
console, retrain from the console, promote while a reply is streaming.

Processes, sockets, store, database, model and training are those of the product; only the browser
is AppTest, which runs the console's own scripts.
"""

import asyncio
import gzip
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import ui.app
from bench.product import Product, free_port, lend_base_model, running_product
from chatbot.client import ChatClient
from chatbot.client_state import ReplyEnded, ReplyText, Update
from tests.ui.conftest import fill_login, named

pytestmark = [pytest.mark.loop, pytest.mark.model, pytest.mark.timeout(3600)]

CORRECTION = "Of course. Your ride with Lyft is booked, and its number is 4711."
RUN_SECONDS = 1200.0  # on cores without bfloat16; a minute or two on others


def _first_lines(source: Path, target: Path, count: int) -> Path:
    with gzip.open(source, "rt") as lines:
        target.write_text("".join(line for line, _ in zip(lines, range(count), strict=False)))
    return target


def _frontdesk(data_dir: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "chatbot.cli", *arguments, "--data-dir", str(data_dir)],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _versions(data_dir: Path) -> dict[str, str]:
    """Version id -> state."""
    listed = json.loads(_frontdesk(data_dir, "models", "list", "--json"))
    return {version["id"]: version["state"] for version in listed}


@pytest.fixture(scope="module")
def first_version(
    tmp_path_factory: pytest.TempPathFactory, transcripts: Path
) -> tuple[Path, Path, Path, str]:
    """(data directory, training file, held-out file, version): 20 steps on STAR."""
    folder = tmp_path_factory.mktemp("loop")
    data_dir = folder / "data"
    data_dir.mkdir()
    lend_base_model(data_dir)
    train = _first_lines(transcripts / "star-train.jsonl.gz", folder / "train.jsonl", 80)
    held_out = _first_lines(transcripts / "star-val.jsonl.gz", folder / "held-out.jsonl", 3)
    _frontdesk(
        data_dir,
        *("train", "--data", str(train), "--eval-data", str(held_out)),
        *("--max-steps", "20", "--batch-size", "1", "--eval-turns", "4"),
    )
    [version] = [key for key, state in _versions(data_dir).items() if state == "candidate"]
    return data_dir, train, held_out, version


@pytest.fixture
async def product(first_version: tuple[Path, Path, Path, str]) -> AsyncIterator[Product]:
    data_dir, train, held_out, _ = first_version
    data = {
        "FRONTDESK_TRAIN_DATA": str(train),
        "FRONTDESK_TRAIN_EVAL_DATA": str(held_out),
        "FRONTDESK_REPLY_MAX_TOKENS": "96",
    }
    async with running_product(data_dir, free_port(), environment=data) as product:
        yield product


async def _reply(chat: ChatClient, text: str) -> ReplyEnded:
    await chat.send(text)
    async with asyncio.timeout(120):
        async for update in chat.updates():
            if isinstance(update, ReplyEnded):
                return update
    raise AssertionError("the updates ended")


async def _next(chat: ChatClient, kind: type[Update]) -> Any:
    async with asyncio.timeout(120):
        async for update in chat.updates():
            if isinstance(update, kind):
                return update
    raise AssertionError("the updates ended")


def _console(page: str, password: str, **query: str) -> AppTest:
    """A tab of the console, logged in through its form, with ``page`` open."""
    at = AppTest.from_file(ui.app.__file__, default_timeout=60).run()
    at = fill_login(at, "admin", password)
    assert not at.exception
    for name, value in query.items():
        at.query_params[name] = value
    at = at.switch_page(f"views/{page}.py").run()
    assert not at.exception
    return at


def _correct(password: str, conversation_id: str, said: str) -> None:
    """Correct the reply ``said`` in the console."""
    at = _console("conversations", password, conversation=conversation_id)
    [area] = [area for area in at.text_area if area.value == said]
    area.input(CORRECTION)
    [save] = [button for button in at.button if button.label == "Save"][:1]
    at = save.click().run()
    assert not at.exception
    assert CORRECTION in [text.value for text in at.text]


def _start_training(password: str) -> None:
    """Start a run of three steps from the console, with a double click."""
    at = _console("training", password)
    named(at.number_input, "Most steps").set_value(3)
    start = named(at.button, "Start training")
    start.click().run()
    start.click()
    at.run()
    assert not at.exception


async def _run_done(api: httpx.AsyncClient) -> dict[str, Any]:
    deadline = time.monotonic() + RUN_SECONDS
    while True:
        [run] = (await api.get("/v1/admin/training/runs")).raise_for_status().json()["items"]
        if run["ended_at"] is not None:
            return dict(run)
        assert time.monotonic() < deadline, f"the run did not end: {run}"
        await asyncio.sleep(0.5)


async def test_the_loop_runs_end_to_end(
    product: Product,
    first_version: tuple[Path, Path, Path, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data_dir, _, _, first = first_version
    password = (data_dir / "admin-password").read_text().strip()
    monkeypatch.setenv("FRONTDESK_PUBLIC_URL", product.url)
    st.cache_resource.clear()
    await asyncio.to_thread(
        _frontdesk, data_dir, "models", "promote", first, "--reason", "first", "--override"
    )
    api = httpx.AsyncClient(
        base_url=product.url, headers={"Authorization": f"Bearer {product.token}"}, timeout=30
    )
    async with api, ChatClient(product.url, "demo") as ada, ChatClient(product.url, "demo") as ben:
        replies = await asyncio.gather(
            _reply(ada, "Hello, I need a ride to the airport."),
            _reply(ben, "Book a hotel, please."),
        )
        assert [reply.version for reply in replies] == [first, first]

        # staff correct what Ada was told, and retrain; a double click makes one run
        conversation_id = ada.state.conversation_id
        assert conversation_id is not None
        await asyncio.to_thread(_correct, password, conversation_id, replies[0].text)
        await asyncio.to_thread(_start_training, password)
        run = await _run_done(api)
        assert run["state"] == "completed", run
        second = run["version_id"]
        assert (await api.get("/v1/admin/versions")).json()["live"] == first
        dataset = (data_dir / "runs" / run["id"] / "train.jsonl").read_text()
        assert CORRECTION in dataset

        # promoted while a reply is streaming: that reply ends with the version that began it
        await ada.send("Tell me everything about my booking, step by step, and take your time.")
        await _next(ada, ReplyText)
        promoted = await api.post(
            f"/v1/admin/versions/{second}/promote", json={"reason": "loop test", "override": True}
        )
        promoted.raise_for_status()
        streaming = await _next(ada, ReplyEnded)
        assert streaming.version == first
        assert streaming.finish_reason in ("end", "length")
        assert streaming.text

        # the same open chat goes on with the new version, and nothing of it was lost
        following = await _reply(ada, "Thank you. What is its number?")
        assert following.version == second
        events = (await api.get(f"/v1/admin/conversations/{conversation_id}")).json()["events"]
        assert [event["offset"] for event in events] == list(range(1, len(events) + 1))
        assert [event["text"] for event in events if event["type"] == "reply.completed"] == [
            replies[0].text,
            streaming.text,
            following.text,
        ]
        assert (await api.get(f"/v1/admin/conversations/{conversation_id}")).json()["reviews"][0][
            "correction"
        ] == CORRECTION
