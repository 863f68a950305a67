"""Takes reply jobs and writes the replies, several at once; API requests beside them."""

import asyncio

import structlog
from prometheus_client import CollectorRegistry

from chatbot.budgets import TokenBudgets
from chatbot.conversation.events import Lease
from chatbot.crew import all_or_none, end_tasks
from chatbot.engine.interface import Engine
from chatbot.errors import FrontdeskError, NotFound, StorageFull, StoreUnavailable
from chatbot.presence import TELL_SECONDS, WorkerPresence, WorkerState
from chatbot.services import Services
from chatbot.tracing import span, trace_id_of
from chatbot.worker.adapters import IDLE_SECONDS, Adapters
from chatbot.worker.assist import Assistant
from chatbot.worker.completions import Completions
from chatbot.worker.context import ReplyContext
from chatbot.worker.lessons import Lessons
from chatbot.worker.metrics import WorkerMetrics, serve_metrics
from chatbot.worker.pace import BACKOFF, sleep_or
from chatbot.worker.reply import Cost, ReplyWriter, Result
from chatbot.worker.tools import Tools

log = structlog.get_logger()

TAKE_SECONDS = 1.0  # one wait for a job; also how long a stop may go unseen
HOUSEKEEPING_SECONDS = 2.0  # between looks at the engine's numbers and at idle adapters


class Worker:
    """Serves reply jobs with one engine, which the caller starts and closes.

    Args:
        drain_seconds: how long running replies may go on after a stop; then they are given back
            and another worker goes on from their last character.
    """

    def __init__(
        self,
        services: Services,
        engine: Engine,
        name: str,
        registry: CollectorRegistry | None = None,
        drain_seconds: float = 5.0,
        adapter_idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        settings = services.settings
        self._services = services
        self._engine = engine
        self._name = name
        self._drain_seconds = drain_seconds
        self.metrics = WorkerMetrics(registry or CollectorRegistry())
        self._lessons = Lessons(engine, services.database)
        self._adapters = Adapters(engine, services.versions, self._lessons, adapter_idle_seconds)
        self._context = ReplyContext(services.versions, services.database, settings.system_prompt)
        self._tools = Tools(
            services.log,
            engine,
            settings,
            self._adapters,
            self._context,
            self.metrics,
            self._lessons,
        )
        self._completions = Completions(
            services.redis, engine, settings, self._adapters, self.metrics
        )
        self._assistant = Assistant(self._tools, services)
        self._budgets = TokenBudgets(services.redis, settings)
        self._presence = WorkerPresence(services.redis)
        self._teller: asyncio.Task[None]
        self._seconds_per_reply: float | None = None  # moving average of those that ended
        self._slots = asyncio.Semaphore(settings.max_running)
        self._running: set[asyncio.Task[None]] = set()
        self._not_before = 0.0  # loop time until which no job is taken

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then end or give back what runs."""
        port = self._services.settings.worker_metrics_port
        with serve_metrics(self.metrics.registry, port):
            beside = [
                asyncio.create_task(self._keep_house(), name="worker.housekeeping"),
                asyncio.create_task(self._assistant.run(), name="worker.assist"),
            ]
            self._teller = asyncio.create_task(self._keep_telling(), name="worker.presence")
            try:
                await all_or_none(
                    self._write_replies(stop), self._completions.run(stop, self._drain_seconds)
                )
            finally:
                await end_tasks([*beside, self._teller])

    async def _write_replies(self, stop: asyncio.Event) -> None:
        try:
            await self._take_jobs(stop)
        finally:
            await self._leave()
            await self._drain()

    async def _take_jobs(self, stop: asyncio.Event) -> None:
        pause = BACKOFF[0]
        while not stop.is_set():
            wait = self._not_before - asyncio.get_running_loop().time()
            if wait > 0:
                await sleep_or(stop, min(wait, TAKE_SECONDS))
                continue
            if not await self._slot(stop):
                continue
            lease = None
            try:
                lease = await self._services.log.take_job(self._name, TAKE_SECONDS)
                pause = BACKOFF[0]
            except (StoreUnavailable, StorageFull) as error:
                log.warning("worker.store_away", error=str(error), retry_in=pause)
                await sleep_or(stop, pause)
                pause = min(2 * pause, BACKOFF[1])
            finally:
                if lease is None:
                    self._slots.release()
            if lease is not None:
                self._begin(lease)

    async def _slot(self, stop: asyncio.Event) -> bool:
        """Wait for room to write one more reply; False when there is none yet."""
        try:
            await asyncio.wait_for(self._slots.acquire(), TAKE_SECONDS)
        except TimeoutError:
            return False
        if stop.is_set():
            self._slots.release()
            return False
        return True

    def _begin(self, lease: Lease) -> None:
        task = asyncio.create_task(self._serve(lease), name=f"serve {lease.reply_id}")
        self._running.add(task)
        self.metrics.running.set(len(self._running))
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._slots.release()
        self.metrics.running.set(len(self._running))

    async def _serve(self, lease: Lease) -> None:
        began = asyncio.get_running_loop().time()
        writer = ReplyWriter(self._tools, lease)
        structlog.contextvars.bind_contextvars(  # this task has a context of its own
            conversation_id=lease.conversation_id, trace_id=trace_id_of(lease.trace)
        )
        try:
            with span(
                "reply",
                lease.trace,
                conversation__id=lease.conversation_id,
                reply__id=lease.reply_id,
                attempt=lease.attempt,
                waited=lease.waited,
            ) as current:
                result = await writer.run()
                current.set_attribute("outcome", result.outcome)
        except asyncio.CancelledError:
            result = Result("released")
        except Exception:  # a bug must not take the worker down; the lease runs out
            log.exception("worker.bug", reply=lease.reply_id)
            result = Result("lost")
        if result.outcome in ("end", "length"):
            self._note_life(asyncio.get_running_loop().time() - began)
        self._note(result)
        await self._count(writer.cost)

    def _note_life(self, seconds: float) -> None:
        average = self._seconds_per_reply
        self._seconds_per_reply = seconds if average is None else 0.8 * average + 0.2 * seconds

    async def _count(self, cost: Cost | None) -> None:
        """Write down what a reply cost. If the store is away, the visitor has it for nothing."""
        if cost is None:
            return
        try:
            await self._budgets.spend(cost.site, cost.visitor, cost.tokens)
        except (StoreUnavailable, StorageFull) as error:
            log.warning("worker.tokens_not_counted", error=str(error))

    def _note(self, result: Result) -> None:
        self.metrics.ended(result.outcome)
        self._look_at_engine()
        if result.pause:
            self._not_before = asyncio.get_running_loop().time() + result.pause

    def _look_at_engine(self) -> None:
        try:
            self.metrics.engine = self._engine.stats()
        except FrontdeskError:
            self.metrics.engine = None  # not running: better no numbers than old ones

    async def _keep_house(self) -> None:
        while True:
            self._look_at_engine()
            try:
                await self._adapters.drop_idle(await self._context.live_version())
                await self._lessons.approved()
            except (StoreUnavailable, NotFound) as error:
                log.debug("worker.housekeeping", error=str(error))
            await asyncio.sleep(HOUSEKEEPING_SECONDS)

    async def _keep_telling(self) -> None:
        """For ever: tell the servers that this worker is alive, and how fast it is."""
        while True:
            settings = self._services.settings
            state = WorkerState(settings.max_running, len(self._running), self._seconds_per_reply)
            try:
                await self._presence.tell(self._name, state)
            except (StoreUnavailable, StorageFull) as error:
                log.debug("worker.presence_not_told", error=str(error))
            await asyncio.sleep(TELL_SECONDS)

    async def _leave(self) -> None:
        await end_tasks([self._teller])  # else it might say once more that it is alive
        try:
            await self._presence.leave(self._name)
        except StoreUnavailable as error:
            log.debug("worker.presence_not_ended", error=str(error))  # it ends by itself

    async def _drain(self) -> None:
        if not self._running:
            return
        log.info("worker.draining", replies=len(self._running), seconds=self._drain_seconds)
        _, left = await asyncio.wait(self._running, timeout=self._drain_seconds)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
