"""A trainer process with jobs of its own, for tests: ``python -m tests.chatbot.training_jobs
DATA_DIR DATABASE_URL REDIS_URL JOB [burst]``. The jobs do what a training does, without a model."""

import os
import signal
import sys
from pathlib import Path

from chatbot import training_queue
from chatbot.record.database import Database
from chatbot.settings import load_settings
from chatbot.trainer import run_trainer, watched
from chatbot.training_runs import TrainingRuns


def _open() -> tuple[Database, TrainingRuns]:
    settings = load_settings()
    database = Database(settings.database_url)
    return database, TrainingRuns(database, settings.redis_url)


def quick(run_id: str) -> None:
    """Ends at once; says where it ran."""
    database, runs = _open()
    runs.begin(run_id)
    runs.progress(run_id, phase="train", step=1, total_steps=1, message=f"pid {os.getpid()}")
    runs.complete(run_id, "v-1")
    database.close()


def patient(run_id: str) -> None:
    """Works until it is told to stop, as a training does at its next step."""
    database, runs = _open()
    run = runs.begin(run_id)
    with watched(runs, run_id) as stop:
        runs.progress(run_id, phase="train", step=run.attempts, message=f"pid {os.getpid()}")
        stop.wait(60)
    if runs.cancel_requested(run_id):
        runs.cancelled(run_id)
    elif stop.is_set():
        runs.interrupted(run_id)
    else:
        runs.fail(run_id, "nobody stopped it")
    database.close()


def suicidal(run_id: str) -> None:
    """Is killed as for want of memory."""
    _, runs = _open()
    runs.begin(run_id)
    os.kill(os.getpid(), signal.SIGKILL)


def broken(run_id: str) -> None:
    """Raises what nobody foresaw."""
    _, runs = _open()
    runs.begin(run_id)
    runs.fail(run_id, "an internal error")
    raise RuntimeError("boom")


def main() -> None:
    """The trainer, with one of the jobs above for every run."""
    folder, database_url, redis_url, job, *rest = sys.argv[1:]
    training_queue.JOB = f"tests.chatbot.training_jobs.{job}"
    settings = load_settings(data_dir=Path(folder), database_url=database_url)
    run_trainer(settings, redis_url, burst="burst" in rest, recovery_seconds=1)


if __name__ == "__main__":
    main()
