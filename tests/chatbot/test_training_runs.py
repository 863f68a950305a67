"""Training runs: one active, none doubled, none lost."""

import threading
import time
from collections.abc import Callable

import pytest
from redis import Redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer
from sqlalchemy import select

from chatbot.errors import Conflict, NotFound, RunActive, StoreUnavailable
from chatbot.record.database import Database
from chatbot.record.tables import Audit, TrainingRun
from chatbot.training_queue import QUEUE
from chatbot.training_runs import Run, TrainingRuns

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def store(redis_url: str) -> Redis:
    client = Redis.from_url(redis_url)
    client.flushdb()
    return client


@pytest.fixture
def runs(database: Database, redis_url: str, store: Redis) -> TrainingRuns:
    return TrainingRuns(database, redis_url)


def _queued(store: Redis) -> list[str]:
    return list(Queue(QUEUE, connection=store, serializer=JSONSerializer).job_ids)


def _age(database: Database, run_id: str, seconds: float) -> None:
    """Let the run's last sign of life be that long ago."""
    with database.session() as session:
        row = session.get(TrainingRun, run_id)
        assert row is not None
        row.heartbeat_at -= round(seconds * 1000)


def test_a_run_is_kept_and_queued_by_name(
    runs: TrainingRuns, store: Redis, database: Database
) -> None:
    run, created = runs.create("r1", "ada", {"epochs": 2})
    assert created
    assert (run.state, run.requested_by, run.settings, run.step) == (
        "queued",
        "ada",
        {"epochs": 2},
        0,
    )
    job = Job.fetch(run.id, connection=store, serializer=JSONSerializer)
    assert (job.func_name, job.args) == ("finetune.jobs.run_training", [run.id])
    assert _queued(store) == [run.id]
    assert runs.active() == run == runs.get(run.id)
    with database.session() as session:
        audit = session.scalars(select(Audit)).one()
    assert (audit.actor, audit.action, audit.subject) == ("ada", "training.start", run.id)


def test_the_same_request_makes_one_run(runs: TrainingRuns, store: Redis) -> None:
    first, _ = runs.create("r1", "ada", {})
    again, created = runs.create("r1", "bob", {"epochs": 9})
    assert again == first
    assert not created
    assert _queued(store) == [first.id]


def test_another_run_is_refused_while_one_is_active(runs: TrainingRuns) -> None:
    run, _ = runs.create("r1", "ada", {})
    for _ in range(2):
        with pytest.raises(RunActive) as caught:
            runs.create("r2", "ada", {})
        assert caught.value.data == {"run_id": run.id}
        if runs.get(run.id).state == "queued":
            runs.begin(run.id)
    runs.complete(run.id, "v-1")
    assert runs.create("r2", "ada", {})[1]


@pytest.mark.parametrize("same_request", [True, False])
def test_two_creates_at_once_make_one_run(
    runs: TrainingRuns, store: Redis, same_request: bool
) -> None:
    outcomes: list[Run | RunActive] = []
    barrier = threading.Barrier(2)

    def create(request_id: str) -> None:
        barrier.wait(10)
        try:
            outcomes.append(runs.create(request_id, "ada", {})[0])
        except RunActive as error:
            outcomes.append(error)

    names = ["r1", "r1"] if same_request else ["r1", "r2"]
    threads = [threading.Thread(target=create, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(runs.list()) == 1
    assert _queued(store) == [runs.list()[0].id]
    assert [isinstance(o, RunActive) for o in outcomes].count(True) == (not same_request)


def test_progress_is_a_log_that_readers_follow(runs: TrainingRuns) -> None:
    run, _ = runs.create("r1", "ada", {})
    assert runs.begin(run.id).state == "running"
    assert runs.progress(run.id, phase="prepare", message="reading") == 1
    assert runs.progress(run.id, phase="train", step=1, total_steps=9, loss=2.5) == 2
    assert (
        runs.progress(run.id, phase="train", step=2, total_steps=9, loss=2.0, tokens_per_s=250.0)
        == 3
    )
    assert [line.n for line in runs.progress_after(run.id, 0)] == [1, 2, 3]
    assert [line.loss for line in runs.progress_after(run.id, 2)] == [2.0]
    seen = runs.get(run.id)
    assert (seen.phase, seen.step, seen.total_steps, seen.loss) == ("train", 2, 9, 2.0)
    assert seen.tokens_per_s == 250.0
    runs.progress(run.id, phase="evaluate", step=1, total_steps=4)
    seen = runs.get(run.id)
    assert (seen.phase, seen.step, seen.loss, seen.tokens_per_s) == ("evaluate", 1, 2.0, 250.0)


def test_an_ended_run_keeps_the_steps_that_it_trained(runs: TrainingRuns) -> None:
    run, _ = runs.create("r1", "ada", {})
    runs.begin(run.id)
    runs.progress(run.id, phase="train", step=176, total_steps=176, loss=2.0)
    runs.progress(run.id, phase="evaluate", step=4, total_steps=4)
    runs.progress(run.id, phase="publish", message="v-1 is a candidate")
    going_on = runs.get(run.id)
    assert (going_on.phase, going_on.step, going_on.total_steps) == ("publish", 0, 0)
    ended = runs.complete(run.id, "v-1")
    assert (ended.step, ended.total_steps, ended.phase) == (176, 176, "publish")
    assert runs.get(run.id) == ended


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (lambda runs, name: runs.complete(name, "v-1"), "completed"),
        (lambda runs, name: runs.fail(name, "no data"), "failed"),
        (lambda runs, name: runs.cancelled(name), "cancelled"),
    ],
)
def test_an_ended_run_takes_nothing_more(
    runs: TrainingRuns, end: Callable[[TrainingRuns, str], Run], state: str
) -> None:
    run, _ = runs.create("r1", "ada", {})
    runs.begin(run.id)
    ended = end(runs, run.id)
    assert ended.state == state
    assert ended.ended_at is not None
    assert runs.active() is None
    for refused in (
        lambda: runs.progress(run.id, phase="train"),
        lambda: runs.heartbeat(run.id),
        lambda: runs.complete(run.id, "v-2"),
        lambda: runs.fail(run.id, "x"),
        lambda: runs.begin(run.id),
    ):
        with pytest.raises(Conflict):
            refused()
    assert runs.get(run.id) == ended


def test_unknown_runs_are_not_found(runs: TrainingRuns) -> None:
    for call in (runs.get, runs.begin, runs.heartbeat, runs.cancel_requested):
        with pytest.raises(NotFound):
            call("run-none")
    with pytest.raises(NotFound):
        runs.progress_after("run-none", 0)
    with pytest.raises(NotFound):
        runs.request_cancel("run-none", "ada")


def test_cancelling_a_queued_run_ends_it_at_once(runs: TrainingRuns, store: Redis) -> None:
    run, _ = runs.create("r1", "ada", {})
    assert runs.request_cancel(run.id, "ada").state == "cancelled"
    assert _queued(store) == []
    assert runs.request_cancel(run.id, "ada").state == "cancelled"
    assert runs.create("r2", "ada", {})[1]


def test_cancelling_a_running_run_asks_its_trainer(runs: TrainingRuns, database: Database) -> None:
    run, _ = runs.create("r1", "ada", {})
    runs.begin(run.id)
    for _ in range(2):
        assert runs.request_cancel(run.id, "bob").state == "running"
    assert runs.cancel_requested(run.id)
    with database.session() as session:
        rows = session.scalars(select(Audit).where(Audit.action == "training.cancel")).all()
    assert [row.actor for row in rows] == ["bob"]
    assert runs.cancelled(run.id).state == "cancelled"


def test_cancelling_a_run_whose_trainer_is_gone_ends_it(
    runs: TrainingRuns, database: Database
) -> None:
    run, _ = runs.create("r1", "ada", {})
    runs.begin(run.id)
    _age(database, run.id, 60)
    assert runs.request_cancel(run.id, "ada").state == "cancelled"


def test_a_completed_run_cannot_be_cancelled(runs: TrainingRuns) -> None:
    run, _ = runs.create("r1", "ada", {})
    runs.begin(run.id)
    runs.complete(run.id, "v-1")
    with pytest.raises(Conflict, match="completed"):
        runs.request_cancel(run.id, "ada")


def test_an_interrupted_run_waits_for_the_next_trainer(runs: TrainingRuns, store: Redis) -> None:
    run, _ = runs.create("r1", "ada", {})
    runs.begin(run.id)
    store.flushdb()  # the job ended
    waiting = runs.interrupted(run.id)
    assert (waiting.state, waiting.attempts) == ("queued", 0)
    assert runs.recover_abandoned() == [run.id]
    assert _queued(store) == [run.id]
    assert runs.begin(run.id).attempts == 1


def test_a_flushed_redis_loses_no_run(runs: TrainingRuns, store: Redis) -> None:
    run, _ = runs.create("r1", "ada", {})
    store.flushdb()
    assert runs.recover_abandoned() == [run.id]
    assert _queued(store) == [run.id]
    assert runs.recover_abandoned() == []  # it waits: nothing to do
    assert _queued(store) == [run.id]


def test_redis_away_while_a_run_is_made_keeps_it(
    database: Database, redis_url: str, store: Redis
) -> None:
    away = TrainingRuns(database, NOWHERE)
    with pytest.raises(StoreUnavailable, match="Redis"):
        away.create("r1", "ada", {})
    runs = TrainingRuns(database, redis_url)
    run, created = runs.create("r1", "ada", {})
    assert not created
    assert _queued(store) == [run.id]


def test_a_killed_trainers_run_is_queued_again_and_fails_in_the_end(
    runs: TrainingRuns, database: Database, store: Redis
) -> None:
    run, _ = runs.create("r1", "ada", {})
    for attempt in (1, 2):
        store.flushdb()
        assert runs.begin(run.id).attempts == attempt
        assert runs.recover_abandoned() == []  # its trainer may be alive
        _age(database, run.id, 60)
        assert runs.recover_abandoned() == [run.id]
        assert runs.get(run.id).state == "queued"
    runs.begin(run.id)
    _age(database, run.id, 60)
    assert runs.recover_abandoned() == []
    failed = runs.get(run.id)
    assert failed.state == "failed"
    assert "3 times" in failed.error
    assert runs.active() is None


def test_an_abandoned_run_with_a_cancel_is_cancelled(
    runs: TrainingRuns, database: Database
) -> None:
    run, _ = runs.create("r1", "ada", {})
    runs.begin(run.id)
    runs.request_cancel(run.id, "ada")
    _age(database, run.id, 60)
    assert runs.recover_abandoned() == []
    assert runs.get(run.id).state == "cancelled"


def test_a_job_taken_by_a_trainer_that_died_before_it_began_is_queued_again(
    runs: TrainingRuns, database: Database, store: Redis
) -> None:
    run, _ = runs.create("r1", "ada", {})
    queue = Queue(QUEUE, connection=store, serializer=JSONSerializer)
    assert queue.lmove(store, queue.key, None)  # what rq does first; then SIGKILL
    assert runs.recover_abandoned() == []  # may be on its way
    _age(database, run.id, 60)
    assert runs.recover_abandoned() == [run.id]
    assert _queued(store) == [run.id]
    assert store.lrange(queue.intermediate_queue_key, 0, -1) == []


def test_many_recoveries_at_once_queue_one_job(runs: TrainingRuns, store: Redis) -> None:
    run, _ = runs.create("r1", "ada", {})
    store.flushdb()
    threads = [threading.Thread(target=runs.recover_abandoned) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert _queued(store) == [run.id]


def test_the_newest_run_is_listed_first(runs: TrainingRuns) -> None:
    names = []
    for n in range(3):
        run, _ = runs.create(f"r{n}", "ada", {})
        runs.request_cancel(run.id, "ada")
        names.append(run.id)
        before = time.time_ns() // 1_000_000
        while time.time_ns() // 1_000_000 == before:
            pass
    assert [run.id for run in runs.list()] == names[::-1]
    assert len(runs.list(limit=2)) == 2
