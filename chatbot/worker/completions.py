"""Writes completions of the OpenAI-compatible API, in the same engine as the replies of chats.

Both enter the engine's one queue, which is first come, first served. So that no crowd of API
requests stands in front of a visitor, a worker takes no more of them than two full batches; the
others wait in the store, where any worker may take them.
"""

import asyncio
import contextlib
import secrets

import structlog
from redis.asyncio import Redis

from chatbot.completions.outbox import Line, Outbox
from chatbot.completions.queue import Delivery, JobQueue
from chatbot.completions.wire import Ended, Failed, Job, Released, failure
from chatbot.engine.interface import Chunk, Engine, GenerationRequest, SamplingParams, Usage
from chatbot.errors import (
    FrontdeskError,
    Overloaded,
    PromptTooLong,
    ReplyLost,
    StorageFull,
    StoreUnavailable,
)
from chatbot.prompt import encode_prompt
from chatbot.settings import Settings
from chatbot.worker.adapters import Adapters
from chatbot.worker.lessons import version_scope
from chatbot.worker.metrics import WorkerMetrics
from chatbot.worker.pace import BACKOFF, sleep_or

log = structlog.get_logger()

TAKE_SECONDS = 1.0  # one wait for a job; also how long a stop may go unseen
BATCHES = 2  # in the engine at once: one that runs, and one so that it never waits for the store
FLUSH_SECONDS = 2.0  # for the last words after a stop


class Completions:
    """Serves completions until it is stopped. ``adapters`` are shared with the replies of chats."""

    def __init__(
        self,
        redis: Redis,
        engine: Engine,
        settings: Settings,
        adapters: Adapters,
        metrics: WorkerMetrics,
    ) -> None:
        self._engine = engine
        self._adapters = adapters
        self._metrics = metrics
        self._queue = JobQueue(redis, settings.lease_seconds)
        self._outbox = Outbox(
            redis, self._queue, secrets.token_hex(6), self._cancel, settings.lease_seconds
        )
        # replies of chats are at most max_running: so no request here finds the engine full
        self._most = max(1, min(BATCHES * settings.max_running, settings.max_waiting))
        self._running: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Event()
        self._room.set()
        self._not_before = 0.0  # loop time until which nothing is taken

    async def run(self, stop: asyncio.Event, drain_seconds: float) -> None:
        """Work until ``stop`` is set, then end what runs, or give it back."""
        try:
            await self._take_jobs(stop)
        finally:
            await self._drain(drain_seconds)

    async def _take_jobs(self, stop: asyncio.Event) -> None:
        pause = BACKOFF[0]
        while not stop.is_set():
            wait = self._not_before - asyncio.get_running_loop().time()
            if wait > 0:
                await sleep_or(stop, min(wait, TAKE_SECONDS))
                continue
            if not await self._has_room():
                continue
            try:
                delivery = await self._queue.take(TAKE_SECONDS)
                pause = BACKOFF[0]
            except (StoreUnavailable, StorageFull) as error:
                log.warning("worker.store_away", error=str(error), retry_in=pause)
                await sleep_or(stop, pause)
                pause = min(2 * pause, BACKOFF[1])
                continue
            if delivery is not None:
                self._begin(delivery)

    async def _has_room(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TAKE_SECONDS):
                await self._room.wait()
        return self._room.is_set()

    def _begin(self, delivery: Delivery) -> None:
        request_id = delivery.job.request_id
        if request_id in self._running:  # delivered again: its server does not know yet
            return
        task = asyncio.create_task(self._serve(delivery), name=f"completion {request_id}")
        self._running[request_id] = task
        task.add_done_callback(lambda _: self._ended(request_id))
        self._note_running()

    def _ended(self, request_id: str) -> None:
        del self._running[request_id]
        self._note_running()

    def _note_running(self) -> None:
        self._metrics.completions_running.set(len(self._running))
        if len(self._running) < self._most:
            self._room.set()
        else:
            self._room.clear()

    def _cancel(self, request_id: str) -> None:
        """Nobody waits for it any more."""
        task = self._running.get(request_id)
        if task is not None:
            task.cancel()

    # -- one request

    async def _serve(self, delivery: Delivery) -> None:
        job = delivery.job
        outcome = "cancelled"
        with self._outbox.line(job.server, job.request_id, delivery.entry) as line:
            try:
                outcome = await self._write(job, line)
            except asyncio.CancelledError:
                # unread where the server cancelled; where this worker stops, it is the reason
                line.end(_stopped(line))
                raise
            except FrontdeskError as error:
                outcome = self._fail(job, line, error)
            except Exception:  # a bug must not take the worker down
                log.exception("worker.completion_failed", request=job.request_id)
                outcome = self._fail(
                    job, line, FrontdeskError("the worker failed; its log says why")
                )
            finally:
                self._metrics.completion_ended(outcome)

    def _fail(self, job: Job, line: Line, error: FrontdeskError) -> str:
        if isinstance(error, Overloaded):
            self._not_before = asyncio.get_running_loop().time() + min(1.0, error.retry_after)
        if error.http_status >= 500:
            log.warning("worker.completion_failed", version=job.version, error=str(error))
        line.end(failure(error))
        return "failed"

    async def _write(self, job: Job, line: Line) -> str:
        """Run the request to its end; how it ended."""
        async with self._adapters.use(job.version) as adapter:
            request = self._request(job, adapter)
            async with contextlib.aclosing(self._engine.submit(request)) as stream:
                async for chunk in stream:
                    if chunk.text:
                        line.text(chunk.text)
                    if chunk.finish_reason is not None:
                        return _end(line, chunk)
        raise FrontdeskError("the engine ended a reply without saying so")

    def _request(self, job: Job, adapter: str | None) -> GenerationRequest:
        """Raises PromptTooLong, RequestRefused."""
        room = self._engine.max_context
        # never cut: who asks decides what is left out
        ids = encode_prompt(job.messages, self._engine.tokenizer, max_tokens=1 << 30)
        if len(ids) >= room:
            raise PromptTooLong(
                f"the messages are {len(ids)} tokens long; together with the reply they may have "
                f"{room} at most: leave older ones out"
            )
        arguments = {**job.sampling, "stop": tuple(job.sampling.get("stop", ()))}
        sampling = SamplingParams(**arguments)
        return GenerationRequest(
            job.request_id,
            tuple(ids),
            sampling,
            adapter,
            job.salt,
            draft_scopes=(version_scope(job.version),),
        )

    async def _drain(self, seconds: float) -> None:
        if self._running:
            log.info("worker.draining", completions=len(self._running), seconds=seconds)
            await asyncio.wait(tuple(self._running.values()), timeout=seconds)
        left = tuple(self._running.values())
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        await self._outbox.close(FLUSH_SECONDS)


def _end(line: Line, chunk: Chunk) -> str:
    if chunk.finish_reason == "stopped":  # the engine closes
        line.end(_stopped(line))
        return "cancelled"
    usage = chunk.usage or Usage()
    finish = "length" if chunk.finish_reason == "length" else "end"
    line.end(Ended(finish, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens))
    return finish


def _stopped(line: Line) -> Released | Failed:
    if line.has_text:
        return failure(ReplyLost("the worker that wrote this reply stopped: ask again"))
    return Released()
