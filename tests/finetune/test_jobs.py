"""Runs of the console: state and progress in the record, cancel, interruption, failure."""

from pathlib import Path
from typing import Any

import pytest

from chatbot.errors import Conflict, FrontdeskError
from chatbot.record.database import Database
from chatbot.settings import load_settings
from chatbot.training_runs import Run, TrainingRuns
from chatbot.versions import Versions
from finetune import jobs
from tests.finetune.data import write_dialogues
from tests.finetune.models import save_llama


@pytest.fixture
def runs(
    tmp_path: Path, database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> TrainingRuns:
    environment = {
        "DATA_DIR": tmp_path / "data",
        "DATABASE_URL": database.url,
        "REDIS_URL": redis_url,
        "BASE_MODEL": save_llama(tmp_path / "base"),
        "TRAIN_DATA": write_dialogues(tmp_path / "train.jsonl", range(30)),
        "TRAIN_EVAL_DATA": write_dialogues(tmp_path / "held-out.jsonl", range(100, 103)),
        "TRAINER_THREADS": "1",
        "DTYPE": "float32",
        "PROMOTE_MIN_STOP_RATE": "0",
    }
    for name, value in environment.items():
        monkeypatch.setenv(f"FRONTDESK_{name}", str(value))
    monkeypatch.setattr(jobs, "SECONDS_BETWEEN_LINES", 0.0)
    return TrainingRuns(database, redis_url)


def start(runs: TrainingRuns, **settings: Any) -> Run:
    settings = {"max_steps": 3, **settings}
    return runs.create(f"request-{len(runs.list())}", "tester", settings)[0]


def registry(database: Database) -> Versions:
    settings = load_settings()
    return Versions(database, settings.data_dir / "artifacts", settings)


def test_a_run_ends_with_a_candidate(runs: TrainingRuns, database: Database) -> None:
    run = start(runs, rank=4, learning_rate=0.01)
    jobs.run_training(run.id)
    done = runs.get(run.id)
    assert (done.state, done.error) == ("completed", "")
    version = registry(database).get(done.version_id)
    assert version.state == "candidate"
    assert version.manifest["settings"]["rank"] == 4
    assert version.manifest["settings"]["alpha"] == 8
    lines = runs.progress_after(run.id, 0)
    assert [line.n for line in lines] == list(range(1, len(lines) + 1))
    trained = [line for line in lines if line.phase == "train"]
    assert [(line.step, line.total_steps) for line in trained] == [(1, 3), (2, 3), (3, 3)]
    assert all(line.loss and line.tokens_per_s for line in trained)
    assert lines[-1].message == f"{done.version_id} is a candidate"


def test_a_version_that_passes_is_promoted_when_asked(
    runs: TrainingRuns, database: Database
) -> None:
    run = start(runs, auto_promote=True, learning_rate=0.01)
    jobs.run_training(run.id)
    done = runs.get(run.id)
    assert registry(database).live().id == done.version_id
    assert registry(database).history()[0].actor == "tester"


def test_a_version_that_fails_the_rule_stays_a_candidate(
    runs: TrainingRuns, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRONTDESK_PROMOTE_MIN_STOP_RATE", "1")
    run = start(runs, auto_promote=True)
    jobs.run_training(run.id)
    assert runs.get(run.id).state == "completed"
    assert "stays a candidate" in runs.progress_after(run.id, 0)[-1].message
    assert registry(database).live().id.startswith("base-")


def test_a_cancelled_run(runs: TrainingRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(runs)
    cancel_at_step(runs, run, monkeypatch, 1)
    jobs.run_training(run.id)
    assert runs.get(run.id).state == "cancelled"
    assert start(runs).state == "queued"  # the place is free


def cancel_at_step(
    runs: TrainingRuns, run: Run, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    original = jobs.run_pipeline

    def watched(*arguments: Any) -> Any:
        config, settings, live, report, should_stop, reviewed = arguments

        def cancel(progress: Any) -> None:
            report(progress)
            if progress.phase == "train" and progress.step == step:
                runs.request_cancel(run.id, "tester")

        def stop() -> bool:
            return bool(should_stop()) or runs.cancel_requested(run.id)

        return original(config, settings, live, cancel, stop, reviewed)

    monkeypatch.setattr(jobs, "run_pipeline", watched)


def test_an_interrupted_run_waits_and_is_resumed(
    runs: TrainingRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(runs)
    original = jobs.run_pipeline

    def shut_down(*arguments: Any) -> Any:
        config, settings, live, report, _stop, reviewed = arguments
        asked = iter([False, True])
        return original(config, settings, live, report, lambda: next(asked), reviewed)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "run_pipeline", shut_down)
        jobs.run_training(run.id)
    assert runs.get(run.id).state == "queued"
    jobs.run_training(run.id)
    assert runs.get(run.id).state == "completed"
    steps = [line.step for line in runs.progress_after(run.id, 0) if line.phase == "train"]
    assert steps == [1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"rank": 5000}, "rank=5000 is out of range"), ({"color": 1}, "no setting color")],
)
def test_a_run_that_cannot_be_done_fails_with_its_reason(
    settings: dict[str, Any], says: str, runs: TrainingRuns
) -> None:
    run = start(runs, **settings)
    jobs.run_training(run.id)
    failed = runs.get(run.id)
    assert failed.state == "failed"
    assert says in failed.error


def test_a_missing_file_fails_the_run(runs: TrainingRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTDESK_TRAIN_DATA", "/nowhere.jsonl")
    run = start(runs)
    jobs.run_training(run.id)
    assert "No such file" in runs.get(run.id).error


def test_an_unforeseen_error_fails_the_run_without_its_text(
    runs: TrainingRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(jobs, "run_pipeline", broken)
    run = start(runs)
    with pytest.raises(ZeroDivisionError):
        jobs.run_training(run.id)
    assert runs.get(run.id).state == "failed"
    assert "secret" not in runs.get(run.id).error


def test_a_run_is_worked_on_once(runs: TrainingRuns) -> None:
    run = start(runs)
    jobs.run_training(run.id)
    with pytest.raises(Conflict, match="completed"):
        jobs.run_training(run.id)
    with pytest.raises(FrontdeskError, match="no training run"):
        jobs.run_training("run-none")
