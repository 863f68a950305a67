"""``frontdesk data`` against real stores, as a person types it."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from redis import Redis
from typer.testing import CliRunner

from chatbot.cli import build
from chatbot.errors import FrontdeskError, Held, InputError
from chatbot.record.database import Database
from chatbot.server.sites import ensure_demo_site
from tests.chatbot.recorded import record_conversation, reply, visitor


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.setLevel(before[0])
    root.handlers[:] = before[1]


@pytest.fixture
def run(database: Database, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``run("data", ...)``: what was printed; an error is raised."""
    with Redis.from_url(redis_url) as store:
        store.flushdb()
    monkeypatch.setenv("FRONTDESK_REDIS_URL", redis_url)
    monkeypatch.setenv("FRONTDESK_DATABASE_URL", database.url)
    ensure_demo_site(database)
    record_conversation(database, "c1", visitor("I am jo@example.com"), reply("hello"))
    record_conversation(database, "c2", visitor("=1+1"), site="shop")
    app = build()

    def call(*arguments: str, typed: str = "") -> str:
        given = ["data", *arguments, "--data-dir", str(tmp_path)]
        result = CliRunner().invoke(app, given, input=typed)
        if isinstance(result.exception, FrontdeskError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def test_export(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "all.jsonl"
    told = json.loads(run("export", str(out), "--json"))
    assert (told["conversations"], told["format"]) == (2, "jsonl")
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["c1", "c2"]
    with pytest.raises(InputError, match="there already"):
        run("export", str(out))
    text = run("export", "-", "--format", "csv", "--site", "shop")
    assert "'=1+1" in text
    redacted = run("export", "-", "--site", "demo", "--redact")
    assert "jo@example.com" not in redacted
    with pytest.raises(InputError, match="no date"):
        run("export", "-", "--since", "yesterday")
    with pytest.raises(InputError, match="--format"):
        run("export", str(tmp_path / "x.zip"))


def test_a_person_is_held_and_erased(run: Any) -> None:
    found = json.loads(run("find", "--conversation", "c1", "--json"))
    assert (found["visitor"], found["conversations"]) == ("v", ["c1"])
    hold = json.loads(run("hold", "place", "--conversation", "c1", "--reason", "case 1", "--json"))
    with pytest.raises(Held, match="case 1"):
        run("erase", "--conversation", "c1", "--reason", "asked", "--yes")
    with pytest.raises(Held, match="case 1"):  # before it asks for a word
        run("erase", "--conversation", "c1", "--reason", "asked", typed="")
    assert "case 1" in run("hold", "list")
    run("hold", "lift", hold["id"], "--reason", "over", "--json")
    with pytest.raises(FrontdeskError, match="nothing was erased"):
        run("erase", "--conversation", "c1", "--reason", "asked", typed="other\n")
    printed = run("erase", "--conversation", "c1", "--reason", "asked", "--json", typed="v\n")
    told = json.loads(printed[printed.index("{") :])  # the runner echoes what is typed
    assert (told["state"], told["conversations"]) == ("done", ["c1"])
    assert json.loads(run("receipt", told["id"], "--json")) == told
    assert told["id"] in run("receipt", told["id"])
    with pytest.raises(InputError, match="--site and --sub"):
        run("find", "--site", "demo")


def test_nobody_is_known_of_whom_there_is_nothing(run: Any) -> None:
    named = ("--site", "demo", "--sub", "none")
    found = json.loads(run("find", *named, "--json"))
    assert (found["known"], found["conversations"]) == (False, [])
    run("hold", "place", *named, "--reason", "case 2")
    assert json.loads(run("find", *named, "--json"))["known"] is False


def test_retention(run: Any) -> None:
    shown = json.loads(run("retention", "demo", "--json"))
    assert shown["effective"]["record_days"] == 0
    changed = json.loads(run("retention", "demo", "--record-days", "30", "--apply", "--json"))
    assert changed["own"]["record_days"] == 30
    assert changed["deleted"] == 1  # of 2023
    back = json.loads(run("retention", "demo", "--record-days", "default", "--json"))
    assert back["own"]["record_days"] is None
    with pytest.raises(InputError, match="a number from 1"):
        run("retention", "demo", "--log-days", "0")
