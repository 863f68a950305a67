"""The trainer process: takes training jobs one at a time, each in a forked child.

A child, because a run that is killed for want of memory then takes only itself along, and all its
memory is given back when it ends. The parent holds no threads, database connections or tensors
while it forks.

SIGTERM reaches the child as SIGTERM: :func:`watched` turns it into an event, the training writes a
checkpoint and calls :meth:`TrainingRuns.interrupted`, and the next trainer resumes the run.
"""

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog
from redis import Redis
from redis.exceptions import RedisError
from rq import Worker
from rq.exceptions import StopRequested

from chatbot.errors import Conflict, FrontdeskError
from chatbot.record.database import Database, sqlite_url
from chatbot.settings import Settings
from chatbot.training_queue import QUEUE, SERIALIZER
from chatbot.training_runs import HEARTBEAT_SECONDS, TrainingRuns

log = structlog.get_logger()
RECOVERY_SECONDS = 10
RESTART_SECONDS = 1.0
PR_SET_PDEATHSIG = 1  # prctl(2)


def run_trainer(
    settings: Settings, redis_url: str, *, burst: bool = False, recovery_seconds: int | None = None
) -> None:
    """Work until SIGINT or SIGTERM; with ``burst`` only until the queue is empty. Runs in the
    main thread, since it handles signals. A Redis that goes away is waited for.

    Raises:
        StoreUnavailable, StorageFull: the record cannot be opened at the start.
    """
    url = settings.database_url or sqlite_url(settings.data_dir)
    with _opened(url) as database:
        database.migrate()
    environment = {
        "FRONTDESK_DATA_DIR": str(settings.data_dir.absolute()),
        "FRONTDESK_DATABASE_URL": settings.database_url,
        "FRONTDESK_REDIS_URL": redis_url,
    }
    wish = _Wish()
    while not wish.to_end:
        try:
            with Redis.from_url(redis_url) as redis:
                worker = _Trainer(redis, url, redis_url, environment, recovery_seconds, wish)
                worker.work(burst=burst)
            if burst:
                return
        except RedisError as error:
            if not wish.to_end:
                log.warning("trainer.store_away", error=str(error))
        except StopRequested:
            pass  # a signal while no job runs
        with suppress(StopRequested):
            time.sleep(0 if wish.to_end else RESTART_SECONDS)


@contextmanager
def watched(runs: TrainingRuns, run_id: str) -> Iterator[threading.Event]:
    """For the job: gives signs of life for the run, and yields the event that says "write a
    checkpoint and end": SIGTERM or SIGINT came, a cancel was asked for, or the run was taken
    away. Main thread only, as it handles signals. The handlers before come back at the end; but
    once it was told to end, further signals are ignored, so that none cuts short what is still
    to be written: Linux sends one for each thread of a parent that dies."""
    stop = threading.Event()
    ended = threading.Event()
    before = {
        name: signal.signal(name, lambda *_: stop.set()) for name in (signal.SIGTERM, signal.SIGINT)
    }
    watcher = threading.Thread(
        target=_watch, args=(runs, run_id, stop, ended), name="run-heartbeat", daemon=True
    )
    watcher.start()
    try:
        yield stop
    finally:
        ended.set()
        watcher.join()
        for name, handler in before.items():
            signal.signal(name, signal.SIG_IGN if stop.is_set() else handler)


def _watch(runs: TrainingRuns, run_id: str, stop: threading.Event, ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            runs.heartbeat(run_id)
            if runs.cancel_requested(run_id):
                stop.set()
        except Conflict:
            stop.set()
        except FrontdeskError as error:
            # a database that is away for a moment costs no training; when it stays away the
            # run's own writes fail, and the run with them
            log.warning("trainer.heartbeat_failed", run=run_id, error=str(error))
        ended.wait(HEARTBEAT_SECONDS)


@contextmanager
def _opened(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


@dataclass(slots=True)
class _Wish:
    """What a signal said; outlives the worker that hears it. No threading.Event: its handler
    would wait for a lock that the thread it interrupts may hold."""

    to_end: bool = False


def _is_news(record: logging.LogRecord) -> bool:
    """That the store is away is said once, by :func:`run_trainer`, and without a stack trace."""
    return not (record.exc_info and isinstance(record.exc_info[1], RedisError))


class _Trainer(Worker):  # type: ignore[misc]  # rq is untyped here
    """rq's forking worker, with signs of life every few seconds instead of minutes, logging left
    to the application, and abandoned runs looked for while it is idle."""

    log_result_lifespan = False
    max_connection_wait_time = 5.0
    dequeue_timeout = 5  # rq: a property of 405 seconds; recovery waits for it

    def __init__(
        self,
        redis: Redis,
        database_url: str,
        redis_url: str,
        environment: dict[str, str],
        recovery_seconds: int | None,
        wish: _Wish,
    ) -> None:
        super().__init__(
            [QUEUE],
            connection=redis,
            serializer=SERIALIZER,
            worker_ttl=60,
            job_monitoring_interval=round(HEARTBEAT_SECONDS),
            maintenance_interval=(
                RECOVERY_SECONDS if recovery_seconds is None else recovery_seconds
            ),
            log_job_description=False,
        )
        self._wish = wish
        self._database_url = database_url
        self._redis_url = redis_url
        self._environment = environment

    def bootstrap(self, *_logging: Any) -> None:
        """As rq's, without its log handlers, and without the level that it gives its logger."""
        logger = logging.getLogger("rq.worker")
        logger.setLevel(logging.NOTSET)
        logger.addFilter(_is_news)
        self.register_birth()
        self.subscribe()
        self.set_state("started")
        log.info("trainer.ready", queue=QUEUE)

    def request_stop(self, signum: Any, frame: Any) -> None:
        self._wish.to_end = True
        super().request_stop(signum, frame)

    def handle_warm_shutdown_request(self) -> None:
        """Let the running job write its checkpoint and end."""
        if self.horse_pid:
            self.kill_horse(signal.SIGTERM)

    def run_maintenance_tasks(self) -> None:
        super().run_maintenance_tasks()
        try:
            with _opened(self._database_url) as database:
                for run_id in TrainingRuns(database, self._redis_url).recover_abandoned():
                    log.warning("trainer.run_queued_again", run=run_id)
        except FrontdeskError as error:
            log.warning("trainer.recovery_failed", error=str(error))

    def maintain_heartbeats(self, job: Any, execution: Any) -> None:
        """Redis may go away for a while during a run of hours; the run itself needs only SQL."""
        try:
            super().maintain_heartbeats(job, execution)
        except RedisError as error:
            log.warning("trainer.store_away", error=str(error))

    def setup_work_horse_signals(self) -> None:
        """In the child, before the job."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _end_with_parent(self.pid)
        os.environ.update(self._environment)


def _end_with_parent(parent: int) -> None:
    """Have Linux send SIGTERM to this process when its parent dies, however it dies; elsewhere
    the child goes on by itself and its signs of life keep the run its own."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above
            os.kill(os.getpid(), signal.SIGTERM)
