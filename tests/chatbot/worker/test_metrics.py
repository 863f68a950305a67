"""What a worker tells Prometheus."""

import asyncio
import re
import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from chatbot.worker.metrics import OUTCOMES, WorkerMetrics, serve_metrics
from tests.chatbot.conversation.steps import ask, begin
from tests.chatbot.worker.conftest import Place
from tests.chatbot.worker.scripted_engine import ScriptedEngine
from tests.chatbot.worker.test_worker import ended


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return str(answer.read().decode())


async def test_a_reply_shows_in_the_numbers(place: Place) -> None:
    port = _free_port()
    cid = await begin(place.log)
    async with place.with_settings(worker_metrics_port=port).worker() as worker:
        await ask(place.log, cid)
        await ended(place, cid)
        scraped = await asyncio.to_thread(_scrape, port)
    text = generate_latest(worker.metrics.registry).decode()
    for line in (
        'frontdesk_prefill_tokens_total{source="cached"} 60.0',
        'frontdesk_prefill_tokens_total{source="computed"} 40.0',
        "frontdesk_generated_tokens_total 7.0",
        'frontdesk_kv_blocks{state="free"} 85.0',
        "frontdesk_engine_running ",
    ):
        assert line in scraped
    for line in (
        'frontdesk_replies_total{outcome="end"} 1.0',
        "frontdesk_first_text_seconds_count 1.0",
        "frontdesk_reply_seconds_count 1.0",
        "frontdesk_replies_running 0.0",
    ):
        assert line in text
    with pytest.raises(OSError):
        await asyncio.to_thread(_scrape, port)


def _sections(document: str) -> str:
    """The worker's own metrics, and the archiver's; the keeper's are tested with it."""
    return document.split("## Worker")[1].split("## Keeper")[0]


def test_the_document_lists_every_metric() -> None:
    text = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `(\w+)` \|", _sections(text), re.MULTILINE))
    metrics = WorkerMetrics(CollectorRegistry())
    metrics.engine = ScriptedEngine(str).stats()
    names = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in metrics.registry.collect()
    }
    assert documented == names | {"frontdesk_archive_lag_events"}


def test_every_outcome_is_there_from_the_start() -> None:
    metrics = WorkerMetrics(CollectorRegistry())
    text = generate_latest(metrics.registry).decode()
    for outcome in OUTCOMES:
        assert f'frontdesk_replies_total{{outcome="{outcome}"}} 0.0' in text


def test_no_port_means_no_server() -> None:
    with serve_metrics(CollectorRegistry(), 0):
        pass
