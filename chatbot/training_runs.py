"""Training runs: one active at a time, kept in SQL, worked on through an RQ queue.

SQL is the truth about a run; the RQ job in Redis only wakes a trainer and carries nothing but the
run's id. So a flushed or restarted Redis and a killed trainer lose no run:
:meth:`TrainingRuns.recover_abandoned` finds runs that nobody works on, and queues them again.

A run moves so::

    queued ──begin──► running ──complete / fail / cancelled──► completed | failed | cancelled
      ▲ └──request_cancel──► cancelled      │
      └───────── interrupted, or abandoned ─┘
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from chatbot.errors import Conflict, NotFound, RunActive
from chatbot.record.audit import record
from chatbot.record.clock import now_ms
from chatbot.record.database import Database
from chatbot.record.tables import TrainingProgress, TrainingRun
from chatbot.training_queue import TrainingQueue

HEARTBEAT_SECONDS = 5.0

RunState = Literal["queued", "running", "completed", "failed", "cancelled"]
Phase = Literal["prepare", "train", "evaluate", "publish"]


@dataclass(frozen=True, slots=True)
class Run:
    """One training run with its last line of progress; ``loss`` and ``tokens_per_s`` are the last
    ones there were, also when it evaluates or has ended. ``step`` and ``total_steps`` count what
    the phase counts; of an ended run they are the steps that it trained. Times are Unix ms."""

    id: str
    request_id: str
    state: RunState
    requested_by: str
    settings: dict[str, Any]
    cancel_requested: bool
    attempts: int  # trainers that began it
    version_id: str
    error: str
    created_at: int
    started_at: int | None
    ended_at: int | None
    phase: str
    step: int
    total_steps: int
    loss: float | None
    tokens_per_s: float | None
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class ProgressLine:
    """Line ``n`` (from 1) of a run's progress. ``at`` is Unix ms."""

    n: int
    phase: str
    step: int
    total_steps: int
    loss: float | None
    learning_rate: float | None
    tokens_per_s: float | None
    seconds_left: float | None
    message: str
    at: int


class TrainingRuns:
    """The runs, for whoever asks for one and for the trainer that works on it.

    Every method may raise StoreUnavailable or StorageFull. A run is abandoned when its trainer
    gave no sign for ``stale_seconds``; the one after ``max_attempts`` abandoned attempts fails it.
    """

    def __init__(
        self,
        database: Database,
        redis_url: str,
        *,
        stale_seconds: float = 30.0,
        max_attempts: int = 3,
    ) -> None:
        self._database = database
        self._queue = TrainingQueue(redis_url)
        self._stale_ms = round(stale_seconds * 1000)
        self._max_attempts = max_attempts

    # -- whoever asks for a run

    def create(self, request_id: str, actor: str, settings: dict[str, Any]) -> tuple[Run, bool]:
        """Queue a run. The same ``request_id`` again gives the same run and False; it also puts
        the job into the queue when Redis was away the first time.

        Raises:
            RunActive: another run is queued or running; ``data["run_id"]`` names it.
            StoreUnavailable: Redis is away. The run is kept, and begins once a trainer runs.
        """
        with self._database.exclusive_session("training") as session:
            row = session.scalar(select(TrainingRun).where(TrainingRun.request_id == request_id))
            created = row is None
            if row is None:
                row = _new_run(session, request_id, actor, settings)
            run = _run(session, row)
        if run.state == "queued":
            self._queue.put(run.id)
        return run, created

    def get(self, run_id: str) -> Run:
        """Raises NotFound."""
        with self._database.session() as session:
            row = _row(session, run_id)
            return _run(session, row)

    def list(self, limit: int = 100) -> Sequence[Run]:
        """The newest first."""
        with self._database.session() as session:
            rows = session.scalars(
                select(TrainingRun)
                .order_by(TrainingRun.created_at.desc(), TrainingRun.id.desc())
                .limit(limit)
            ).all()
            return [_run(session, row) for row in rows]

    def active(self) -> Run | None:
        """The run that is queued or running."""
        with self._database.session() as session:
            row = session.scalar(select(TrainingRun).where(TrainingRun.active == 1))
            return None if row is None else _run(session, row)

    def request_cancel(self, run_id: str, actor: str) -> Run:
        """Cancel a queued run at once, and a running one at its trainer's next step (at once too
        when its trainer is gone). Nothing changes when a cancel was asked for already.

        Raises:
            NotFound: no such run.
            Conflict: it ended already, other than by a cancel.
        """
        with self._database.exclusive_session("training") as session:
            row = _row(session, run_id)
            if row.state in ("completed", "failed"):
                raise Conflict(f"run {run_id} is {row.state} already")
            if row.state != "cancelled" and not row.cancel_requested:
                row.cancel_requested = True
                record(session, actor, "training.cancel", row.id)
            if row.state == "queued" or (row.state == "running" and self._stale(row)):
                _end(row, "cancelled")
            run = _run(session, row)
        if run.state == "cancelled":
            self._queue.forget(run.id)
        return run

    def progress_after(self, run_id: str, n: int, limit: int = 1000) -> Sequence[ProgressLine]:
        """Lines after the ``n``-th, oldest first. Raises NotFound."""
        with self._database.session() as session:
            _row(session, run_id)
            rows = session.scalars(
                select(TrainingProgress)
                .where(TrainingProgress.run_id == run_id, TrainingProgress.n > n)
                .order_by(TrainingProgress.n)
                .limit(limit)
            ).all()
            return [_line(row) for row in rows]

    # -- the trainer

    def begin(self, run_id: str) -> Run:
        """Take a queued run.

        Raises:
            NotFound: no such run.
            Conflict: it is not queued: it ended, or another trainer works on it.
        """
        with self._database.exclusive_session("training") as session:
            row = _row(session, run_id)
            if row.state != "queued":
                raise Conflict(f"run {run_id} is {row.state}: it cannot begin")
            row.state = "running"
            row.attempts += 1
            row.heartbeat_at = now_ms()
            row.started_at = row.started_at or row.heartbeat_at
            return _run(session, row)

    def heartbeat(self, run_id: str) -> None:
        """The sign of life that a trainer gives every HEARTBEAT_SECONDS.

        Raises:
            Conflict: the run is not running any more: stop.
        """
        with self._database.session() as session:
            _running(session, run_id).heartbeat_at = now_ms()

    def cancel_requested(self, run_id: str) -> bool:
        with self._database.session() as session:
            return _row(session, run_id).cancel_requested

    def progress(
        self,
        run_id: str,
        *,
        phase: Phase,
        step: int = 0,
        total_steps: int = 0,
        loss: float | None = None,
        learning_rate: float | None = None,
        tokens_per_s: float | None = None,
        seconds_left: float | None = None,
        message: str = "",
    ) -> int:
        """Add a line and give its number; it is a sign of life too.

        Raises:
            Conflict: the run is not running any more: stop.
        """
        with self._database.session() as session:
            run = _running(session, run_id)
            last = _last_line(session, run_id)
            line = TrainingProgress(
                run_id=run_id,
                n=1 if last is None else last.n + 1,
                phase=phase,
                step=step,
                total_steps=total_steps,
                loss=loss,
                learning_rate=learning_rate,
                tokens_per_s=tokens_per_s,
                seconds_left=seconds_left,
                message=message,
                at=now_ms(),
            )
            session.add(line)
            run.heartbeat_at = line.at
            return line.n

    def complete(self, run_id: str, version_id: str) -> Run:
        """The run made a version. Raises Conflict when it is not running any more."""
        return self._ended(run_id, "completed", version_id=version_id)

    def fail(self, run_id: str, error: str) -> Run:
        """The run ended with an error; ``error`` is shown to staff. Raises as complete."""
        return self._ended(run_id, "failed", error=error)

    def cancelled(self, run_id: str) -> Run:
        """The trainer obeyed a cancel. Raises as complete."""
        return self._ended(run_id, "cancelled")

    def interrupted(self, run_id: str) -> Run:
        """The trainer shuts down with a checkpoint written: the run waits for the next trainer
        and does not count as an attempt. Raises as complete."""
        with self._database.exclusive_session("training") as session:
            row = _running(session, run_id)
            row.state = "queued"
            row.attempts -= 1
            row.heartbeat_at = 0
            return _run(session, row)

    # -- recovery

    def recover_abandoned(self) -> Sequence[str]:
        """Put runs that nobody works on back into the queue, or end them. A trainer calls this
        when it starts and every few seconds while it is idle.

        Returns:
            ids of the runs that were queued again.
        """
        with self._database.exclusive_session("training") as session:
            rows = session.scalars(select(TrainingRun).where(TrainingRun.state == "running")).all()
            for row in rows:
                if self._stale(row):
                    self._abandon(row)
            session.flush()
            waiting = session.scalar(select(TrainingRun).where(TrainingRun.state == "queued"))
            seen = None if waiting is None else (waiting.id, waiting.heartbeat_at)
        if seen is None:
            return []
        return [seen[0]] if self._requeue(*seen) else []

    def _abandon(self, row: TrainingRun) -> None:
        if row.cancel_requested:
            _end(row, "cancelled")
        elif row.attempts >= self._max_attempts:
            _end(row, "failed")
            row.error = (
                f"the trainer was lost {row.attempts} times in this run, perhaps for want of "
                "memory; see its log, then start a new run"
            )
        else:
            row.state = "queued"
            row.heartbeat_at = 0

    def _requeue(self, run_id: str, checked_at: int) -> bool:
        """Make sure that a job of the queued run waits or is being started; False when one is.
        ``heartbeat_at`` of a queued run is when its job was last seen so: a job between the queue
        and its trainer's ``begin`` is in neither for a moment. Whoever moves it on from
        ``checked_at`` acts; others that looked at the same time leave it to him."""
        present, healthy = self._queue.state(run_id, self._stale_ms / 1000)
        with self._database.exclusive_session("training") as session:
            row = _row(session, run_id)
            if row.state != "queued" or row.heartbeat_at != checked_at:
                return False
            if not healthy and present and not self._stale(row):
                return False
            row.heartbeat_at = now_ms()
        if healthy:
            return False
        if present:
            self._queue.forget(run_id)
        self._queue.put(run_id)
        return True

    # -- inside

    def _stale(self, row: TrainingRun) -> bool:
        return now_ms() - row.heartbeat_at > self._stale_ms

    def _ended(self, run_id: str, state: RunState, *, version_id: str = "", error: str = "") -> Run:
        with self._database.exclusive_session("training") as session:
            row = _running(session, run_id)
            _end(row, state)
            row.version_id = version_id
            row.error = error
            return _run(session, row)


def _new_run(
    session: Session, request_id: str, actor: str, settings: dict[str, Any]
) -> TrainingRun:
    active = session.scalar(select(TrainingRun).where(TrainingRun.active == 1))
    if active is not None:
        raise RunActive(
            f"run {active.id} is {active.state} already; wait for it or cancel it",
            run_id=active.id,
        )
    at = now_ms()
    row = TrainingRun(
        id=f"run-{uuid.uuid4().hex[:12]}",
        request_id=request_id,
        active=1,
        state="queued",
        requested_by=actor,
        settings=settings,
        cancel_requested=False,
        attempts=0,
        heartbeat_at=at,
        version_id="",
        error="",
        created_at=at,
    )
    session.add(row)
    session.flush()
    record(session, actor, "training.start", row.id, data={"settings": settings})
    return row


def _row(session: Session, run_id: str) -> TrainingRun:
    row = session.get(TrainingRun, run_id)
    if row is None:
        raise NotFound(f"there is no training run {run_id}")
    return row


def _running(session: Session, run_id: str) -> TrainingRun:
    row = _row(session, run_id)
    if row.state != "running":
        raise Conflict(f"run {run_id} is {row.state}, not running")
    return row


def _end(row: TrainingRun, state: RunState) -> None:
    row.state = state
    row.active = None
    row.ended_at = now_ms()


def _last_line(
    session: Session, run_id: str, *, trained: bool = False, phase: Phase | None = None
) -> TrainingProgress | None:
    """The last line; with ``trained`` the last that has a loss, with ``phase`` the last of it."""
    query = select(TrainingProgress).where(TrainingProgress.run_id == run_id)
    if phase is not None:
        query = query.where(TrainingProgress.phase == phase)
    if trained:
        query = query.where(TrainingProgress.loss.is_not(None))
    return session.scalar(query.order_by(TrainingProgress.n.desc()).limit(1))


def _line(row: TrainingProgress) -> ProgressLine:
    return ProgressLine(**{name: getattr(row, name) for name in ProgressLine.__dataclass_fields__})


def _run(session: Session, row: TrainingRun) -> Run:
    last = _last_line(session, row.id)
    trained = _last_line(session, row.id, trained=True)
    # the report and the publishing count other things, and the latter nothing at all
    counted = last if row.active else _last_line(session, row.id, phase="train")
    return Run(
        id=row.id,
        request_id=row.request_id,
        state=row.state,  # type: ignore[arg-type]
        requested_by=row.requested_by,
        settings=dict(row.settings),
        cancel_requested=row.cancel_requested,
        attempts=row.attempts,
        version_id=row.version_id,
        error=row.error,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        phase="" if last is None else last.phase,
        step=0 if counted is None else counted.step,
        total_steps=0 if counted is None else counted.total_steps,
        loss=None if trained is None else trained.loss,
        tokens_per_s=None if trained is None else trained.tokens_per_s,
        seconds_left=None if last is None else last.seconds_left,
    )
