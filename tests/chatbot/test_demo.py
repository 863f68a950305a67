"""What ``frontdesk demo`` and ``frontdesk up`` say when they start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from chatbot.demo import FIRST_RUN, what_goes_on
from chatbot.record.database import Database
from chatbot.settings import Settings, load_settings
from chatbot.training_runs import TrainingRuns
from chatbot.up import missing_files
from chatbot.versions import Versions
from tests.chatbot.versions import make_version


@pytest.fixture
def runs(database: Database, redis_url: str) -> TrainingRuns:
    with Redis.from_url(redis_url) as store:
        store.flushdb()
    return TrainingRuns(database, redis_url)


@pytest.fixture
def versions(database: Database, tmp_path: Path) -> Versions:
    registry = Versions(database, tmp_path / "artifacts", Settings())
    registry.ensure_base("smollm2-135m")
    return registry


def test_the_first_start_says_that_the_base_model_answers(
    runs: TrainingRuns, versions: Versions
) -> None:
    run, _ = runs.create(FIRST_RUN, "demo", {"auto_promote": True})
    said = what_goes_on(run, versions.live())
    assert "answers with the base model" in said
    assert "a first version is tuned" in said


def test_a_later_start_names_the_version_that_is_live(
    runs: TrainingRuns, versions: Versions, tmp_path: Path
) -> None:
    versions.register(make_version(tmp_path / "artifacts", "v1"))
    versions.promote("v1", "ada", "test", override=True)
    for request_id in (FIRST_RUN, "console"):
        run, _ = runs.create(request_id, "ada", {"epochs": 1})
        said = what_goes_on(run, versions.live())
        assert "answers with version v1" in said
        assert run.id in said
        assert "base model" not in said
        assert "first version" not in said
        assert "promote it" in said
        runs.begin(run.id)
        runs.fail(run.id, "test")  # so that the next may begin


def test_a_missing_training_file_is_named_with_its_setting(tmp_path: Path) -> None:
    there = tmp_path / "there.jsonl"
    there.write_text("{}\n")
    gone = tmp_path / "gone.jsonl"
    assert missing_files(load_settings()) == []
    assert missing_files(load_settings(train_data=str(there), train_eval_data=str(there))) == []
    [one] = missing_files(load_settings(train_data=str(gone), train_eval_data=str(there)))
    assert "FRONTDESK_TRAIN_DATA" in one
    assert str(gone) in one
    [other] = missing_files(load_settings(train_data=str(there), train_eval_data=str(gone)))
    assert "FRONTDESK_TRAIN_EVAL_DATA" in other


def test_up_warns_before_it_starts(tmp_path: Path) -> None:
    """The data directory is a file, so that nothing starts; the warning comes all the same."""
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "chatbot.cli", "up", "--data-dir", str(blocked)],
        capture_output=True,
        text=True,
        env={**os.environ, "FRONTDESK_TRAIN_DATA": "gone.jsonl"},
    )
    assert done.returncode != 0
    assert "FRONTDESK_TRAIN_DATA" in done.stdout
    assert "gone.jsonl" in done.stdout
