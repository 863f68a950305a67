"""The training job of the queue. The run's settings, state and progress are in the record."""

import time
from pathlib import Path
from typing import Any

import structlog

from chatbot.bootstrap import open_database, open_versions, resolve_queue_url
from chatbot.errors import FrontdeskError, PromotionRefused, RunInterrupted, TrainingError
from chatbot.record.database import Database
from chatbot.review_data import reviewed_dialogues, site_prompts
from chatbot.settings import Settings, load_settings
from chatbot.trainer import watched
from chatbot.training_runs import Run, TrainingRuns
from chatbot.versions import Versions
from finetune.config import CONFIG_FILE, TrainConfig, load_config
from finetune.pipeline import Outcome, live_subject, run_pipeline
from finetune.progress import Progress, ProgressLog
from finetune.train import ShouldStop

log = structlog.get_logger()
SECONDS_BETWEEN_LINES = 1.0
# what a run from the console may choose; anything else is an error, not a silent default
CHOICES = frozenset({"epochs", "limit", "learning_rate", "rank", "max_steps"})


def run_training(run_id: str) -> None:
    """Work on the run until it is completed, failed, cancelled, or interrupted by the trainer's
    end (then the next trainer goes on with it).

    Raises:
        Conflict, NotFound: there is no queued run of this id.
        Exception: what was not foreseen, after the run was marked as failed.
    """
    settings = load_settings()
    database = open_database(settings)
    try:
        runs = TrainingRuns(database, resolve_queue_url(settings))
        run = runs.begin(run_id)
        with watched(runs, run_id) as stop:
            _work(run, runs, settings, database, stop.is_set)
    finally:
        database.close()


def _work(
    run: Run, runs: TrainingRuns, settings: Settings, database: Database, should_stop: ShouldStop
) -> None:
    try:
        config = run_config(run, settings)
        versions = open_versions(settings, database)
        report_progress = _RunProgress(
            runs, run.id, ProgressLog(config.directory / "progress.jsonl")
        )
        outcome = run_pipeline(
            config,
            settings,
            live_subject(versions, config.base),
            report_progress,
            should_stop,
            reviewed_dialogues(database, site_prompts(database, settings.system_prompt)),
        )
        versions.register(outcome.directory)
        report_progress(Progress("publish", message=_promote(run, versions, outcome)))
        runs.complete(run.id, outcome.version_id)
    except RunInterrupted:
        (runs.cancelled if runs.cancel_requested(run.id) else runs.interrupted)(run.id)
    except FrontdeskError as error:
        log.warning("training.failed", run=run.id, error=str(error))
        runs.fail(run.id, str(error))
    except Exception:
        runs.fail(run.id, "an internal error; the trainer's log has it")
        raise


def run_config(run: Run, settings: Settings) -> TrainConfig:
    """The run's config: as it was when it began, else from its settings.

    Raises:
        TrainingError: a setting that a run cannot have, or out of range.
    """
    if (settings.data_dir / "runs" / run.id / CONFIG_FILE).is_file():
        return load_config(settings.data_dir, run.id)
    chosen = {name: value for name, value in run.settings.items() if value is not None}
    chosen.pop("auto_promote", None)
    unknown = sorted(chosen.keys() - CHOICES)
    if unknown:
        raise TrainingError(f"a run has no setting {', '.join(unknown)}")
    if "rank" in chosen:
        chosen["alpha"] = 2.0 * chosen["rank"]
    return TrainConfig(
        run_id=run.id,
        data_dir=settings.data_dir,
        base=settings.base_model,
        data=_files(settings.train_data),
        eval_data=_files(settings.train_eval_data),
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.trainer_threads,
        **chosen,
    )


def _files(name: str) -> tuple[Path, ...]:
    return (Path(name),) if name else ()


def _promote(run: Run, versions: Versions, outcome: Outcome) -> str:
    """Promote the version if the run asked for it and the rule allows; says what happened."""
    name = outcome.version_id
    if not run.settings.get("auto_promote"):
        return f"{name} is a candidate"
    try:
        versions.promote(name, run.requested_by, f"run {run.id}: its report passed")
    except PromotionRefused as error:
        return f"{name} stays a candidate: {error}"
    return f"{name} is live"


class _RunProgress:
    """Progress into the record, at most a line a second, and all of it into progress.jsonl."""

    def __init__(self, runs: TrainingRuns, run_id: str, file: ProgressLog) -> None:
        self._runs = runs
        self._run_id = run_id
        self._file = file
        self._last: Progress | None = None
        self._at = 0.0

    def __call__(self, progress: Progress) -> None:
        self._file(progress)
        now = time.monotonic()
        ends = progress.step == progress.total_steps
        changed = self._last is None or self._last.phase != progress.phase
        if now - self._at < SECONDS_BETWEEN_LINES and not (ends or changed):
            return
        self._at, self._last = now, progress
        values: dict[str, Any] = {
            name: getattr(progress, name) for name in Progress.__dataclass_fields__
        }
        self._runs.progress(self._run_id, **values)
