"""The RQ queue that wakes trainers. A job is named by the run's id and carries nothing else; the
run itself is in SQL (:mod:`chatbot.training_runs`)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue
from rq.exceptions import DuplicateJobError, InvalidJobOperation, NoSuchJobError
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from chatbot.errors import StoreUnavailable
from chatbot.redis_client import is_cluster

QUEUE = "training"
JOB = "finetune.jobs.run_training"  # by name: this package does not import finetune
JOB_SECONDS = 7 * 24 * 3600
FAILED_JOB_SECONDS = 24 * 3600
# JSON, not pickle: who can write to Redis must not run code of his choice in the trainer
SERIALIZER = JSONSerializer


class TrainingQueue:
    """Every method raises StoreUnavailable when Redis does not answer, or is a cluster."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url

    def put(self, run_id: str) -> None:
        """Enqueue the run's job unless there is one."""
        with self._open() as queue:
            try:
                queue.enqueue(
                    JOB,
                    run_id,
                    job_id=run_id,
                    unique=True,
                    job_timeout=JOB_SECONDS,
                    result_ttl=0,
                    failure_ttl=FAILED_JOB_SECONDS,
                    description=f"training run {run_id}",
                )
            except DuplicateJobError:
                return

    def forget(self, run_id: str) -> None:
        """Delete the run's job, whatever its state."""
        with self._open() as queue:
            # a worker that died while it took the job leaves the id here, and rq would later
            # fail a new job of that id for it
            queue.connection.lrem(queue.intermediate_queue_key, 0, run_id)
            try:
                Job.fetch(run_id, connection=queue.connection, serializer=SERIALIZER).delete()
            except (NoSuchJobError, InvalidJobOperation):
                return  # it is gone, perhaps just now

    def state(self, run_id: str, stale_seconds: float) -> tuple[bool, bool]:
        """(there is a job, it waits in the queue or was just taken by a trainer that showed life
        within ``stale_seconds``)."""
        with self._open() as queue:
            try:
                job = Job.fetch(run_id, connection=queue.connection, serializer=SERIALIZER)
            except NoSuchJobError:
                return False, False
            if run_id in queue.job_ids:
                return True, True
            seen = job.last_heartbeat
            fresh = seen is not None and time.time() - seen.timestamp() < stale_seconds
            return True, fresh and job.get_status(refresh=False) == JobStatus.STARTED

    @contextmanager
    def _open(self) -> Iterator[Any]:
        if is_cluster(self._redis_url):
            raise StoreUnavailable(
                "training needs a Redis that is not a cluster for its queue: set "
                "FRONTDESK_QUEUE_REDIS_URL"
            )
        try:
            with Redis.from_url(
                self._redis_url, socket_connect_timeout=5, socket_timeout=10
            ) as redis:
                yield Queue(QUEUE, connection=redis, serializer=SERIALIZER)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"Redis does not answer: {error}") from error
