"""The trainer process: real forks, real signals, real Redis."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from bench.faults.stores import Store, valkey_binary
from chatbot import training_queue
from chatbot.record.database import Database
from chatbot.record.tables import TrainingRun
from chatbot.trainer import watched
from chatbot.training_runs import Run, TrainingRuns

DEADLINE = 60.0


@pytest.fixture
def runs(
    database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TrainingRuns]:
    client = Redis.from_url(redis_url)
    client.flushdb()
    yield TrainingRuns(database, redis_url)
    client.close()


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


class Trainer:
    """A trainer process whose runs are done by ``job``."""

    def __init__(
        self, folder: Path, database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._arguments = [str(folder), database.url, redis_url]
        self._log = folder / "trainer.log"
        self._monkeypatch = monkeypatch

    @contextmanager
    def running(self, job: str, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
        self._monkeypatch.setattr(training_queue, "JOB", f"tests.chatbot.training_jobs.{job}")
        command = [sys.executable, "-m", "tests.chatbot.training_jobs", *self._arguments, job]
        with self._log.open("ab") as log:
            process = subprocess.Popen([*command, *options], stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait(DEADLINE)

    @property
    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture
def trainer(
    tmp_path: Path, database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Trainer:
    return Trainer(tmp_path, database, redis_url, monkeypatch)


def _until(condition: Callable[[], bool], trainer: Trainer) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, trainer.log
        time.sleep(0.05)  # it waits for another process


def _begin(runs: TrainingRuns) -> Run:
    return runs.create("r-1", "ada", {})[0]


def _in_state(runs: TrainingRuns, run: Run, state: str) -> Callable[[], bool]:
    return lambda: runs.get(run.id).state == state


def _child(runs: TrainingRuns, run: Run) -> int:
    """The pid that the last line of progress names; 0 before it."""
    lines = runs.progress_after(run.id, 0)
    return int(lines[-1].message.removeprefix("pid ")) if lines else 0


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # a zombie waits for its parent only
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_run_is_done_in_a_child(runs: TrainingRuns, trainer: Trainer, redis_url: str) -> None:
    trainer._monkeypatch.setattr(training_queue, "JOB", "tests.chatbot.training_jobs.quick")
    run = _begin(runs)
    with trainer.running("quick", "burst") as process:
        assert process.wait(DEADLINE) == 0, trainer.log
        assert _child(runs, run) != process.pid
    assert runs.get(run.id).state == "completed"
    with Redis.from_url(redis_url) as redis:
        left = [key.decode() for key in redis.scan_iter(f"rq:job:{run.id}*")]
    assert left == []
    for chatter in ("Listening on", "cleaning registries"):  # logging is ours
        assert chatter not in trainer.log


def test_sigterm_interrupts_the_run_and_the_next_trainer_resumes_it(
    runs: TrainingRuns, trainer: Trainer
) -> None:
    with trainer.running("patient") as process:
        run = _begin(runs)
        _until(lambda: _child(runs, run) > 0, trainer)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0, trainer.log
        waiting = runs.get(run.id)
        assert (waiting.state, waiting.attempts) == ("queued", 0)
    with trainer.running("quick"):
        _until(_in_state(runs, run, "completed"), trainer)
    assert runs.get(run.id).attempts == 1


def test_a_cancel_reaches_a_running_job(runs: TrainingRuns, trainer: Trainer) -> None:
    with trainer.running("patient"):
        run = _begin(runs)
        _until(lambda: _child(runs, run) > 0, trainer)
        runs.request_cancel(run.id, "ada")
        _until(_in_state(runs, run, "cancelled"), trainer)


def test_a_killed_trainer_takes_its_child_along_and_the_run_goes_on(
    runs: TrainingRuns, trainer: Trainer, redis_url: str
) -> None:
    """SIGKILL of the parent, and Redis flushed before the next one starts."""
    with trainer.running("patient") as process:
        run = _begin(runs)
        _until(lambda: _child(runs, run) > 0, trainer)
        child = _child(runs, run)
        process.kill()
        process.wait(DEADLINE)
        _until(lambda: _gone(child), trainer)
    # it wrote its checkpoint and gave the run back
    assert runs.get(run.id).state == "queued", trainer.log
    with Redis.from_url(redis_url) as redis:
        redis.flushdb()
    with trainer.running("quick"):
        _until(_in_state(runs, run, "completed"), trainer)


def test_a_killed_child_does_not_take_the_trainer_along(
    runs: TrainingRuns, trainer: Trainer, database: Database
) -> None:
    with trainer.running("suicidal") as process:
        run = _begin(runs)
        for attempt in (1, 2, 3):
            _until(lambda attempt=attempt: runs.get(run.id).attempts == attempt, trainer)
            _age(database, run.id)
        _until(_in_state(runs, run, "failed"), trainer)
        assert process.poll() is None
    assert "3 times" in runs.get(run.id).error


def test_a_job_that_raises_leaves_the_trainer_at_work(runs: TrainingRuns, trainer: Trainer) -> None:
    with trainer.running("broken") as process:
        first = _begin(runs)
        _until(_in_state(runs, first, "failed"), trainer)
        second = runs.create("r-2", "ada", {})[0]
        _until(_in_state(runs, second, "failed"), trainer)
        assert process.poll() is None


def test_sigterm_ends_an_idle_trainer(runs: TrainingRuns, trainer: Trainer) -> None:
    with trainer.running("quick") as process:
        _until(lambda: "trainer.ready" in trainer.log, trainer)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0, trainer.log


def test_a_redis_that_is_away_is_waited_for(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tmp_path, database, "redis://127.0.0.1:1/0", monkeypatch)
    with trainer.running("quick") as process:
        _until(lambda: trainer.log.count("trainer.store_away") >= 2, trainer)
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE)


def test_sigterm_ends_a_trainer_whose_store_died(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when all of ``frontdesk up`` is killed: first the store is gone, then the trainer is
    told to end, while a run is on."""
    store = Store(valkey_binary(), tmp_path / "store")
    store.start()
    runs = TrainingRuns(database, store.url)
    trainer = Trainer(tmp_path, database, store.url, monkeypatch)
    try:
        with trainer.running("patient") as process:
            run = _begin(runs)
            _until(lambda: _child(runs, run) > 0, trainer)
            store.kill()
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE) == 0, trainer.log
            assert "Traceback" not in trainer.log
    finally:
        store.kill()
    waiting = runs.get(run.id)
    assert (waiting.state, waiting.attempts) == ("queued", 0)


def test_watching_gives_signs_of_life_and_hears_of_a_cancel(
    runs: TrainingRuns, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.trainer.HEARTBEAT_SECONDS", 0.05)
    run = _begin(runs)
    runs.begin(run.id)
    _age(database, run.id)
    with watched(runs, run.id) as stop:
        deadline = time.monotonic() + DEADLINE
        while _heartbeat(database, run.id) < time.time() * 1000 - 30_000:
            assert time.monotonic() < deadline
            time.sleep(0.01)  # another thread gives the sign
        assert not stop.is_set()
        runs.request_cancel(run.id, "ada")
        assert stop.wait(DEADLINE)


def test_a_run_that_was_taken_away_is_stopped(
    runs: TrainingRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.trainer.HEARTBEAT_SECONDS", 0.05)
    run = _begin(runs)
    runs.begin(run.id)
    with watched(runs, run.id) as stop:
        runs.fail(run.id, "lost")
        assert stop.wait(DEADLINE)


def test_sigterm_is_heard_while_watching(runs: TrainingRuns) -> None:
    run = _begin(runs)
    runs.begin(run.id)
    with watched(runs, run.id) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(DEADLINE)
    os.kill(os.getpid(), signal.SIGTERM)  # a second one does not cut short what is written now


def test_signals_are_what_they_were_after_a_run_that_ended_by_itself(runs: TrainingRuns) -> None:
    run = _begin(runs)
    runs.begin(run.id)
    before = signal.getsignal(signal.SIGTERM)
    with watched(runs, run.id):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def _age(database: Database, run_id: str) -> None:
    with database.session() as session:
        row = session.get(TrainingRun, run_id)
        assert row is not None
        row.heartbeat_at -= 120_000


def _heartbeat(database: Database, run_id: str) -> int:
    with database.session() as session:
        row = session.get(TrainingRun, run_id)
        assert row is not None
        return row.heartbeat_at
