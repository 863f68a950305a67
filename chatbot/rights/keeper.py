"""Keeping house: retention, idle conversations, exports, and deletions that were not brought to
their end. Runs beside the archiver; any number of processes may, and each may be killed at any
moment.
"""

import asyncio
import contextlib
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge
from sqlalchemy.exc import SQLAlchemyError

from chatbot.conversation.interface import ConversationLog
from chatbot.errors import FrontdeskError
from chatbot.record.clock import now_ms
from chatbot.record.database import Database
from chatbot.rights import deletion, export_jobs, retention
from chatbot.rights.erasure import Eraser
from chatbot.services import Services
from chatbot.settings import Settings

log = structlog.get_logger()
RULES_SECONDS = 60.0  # between two rounds of the rules
EXPORT_SECONDS = 2.0  # between two looks for an export that was asked for
PATIENCE_MS = 60_000  # whoever began a deletion is given so long to end it
STORE_MEMORY_MS = 7 * 86_400_000  # what a restarted store may have forgotten to have erased


class Keeper:
    """See the module. One per process."""

    def __init__(self, services: Services, registry: CollectorRegistry | None = None) -> None:
        self._database: Database = services.database
        self._log: ConversationLog = services.log
        self._settings: Settings = services.settings
        self._data_dir: Path = services.settings.data_dir
        self._eraser = Eraser(
            services.database, services.log, services.runs, services.settings.data_dir
        )
        self._store_run = ""
        self.metrics = KeeperMetrics(registry or CollectorRegistry())

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set."""
        loop = asyncio.get_running_loop()
        next_rules = loop.time()
        while not stop.is_set():
            try:
                await self.make_exports()
                if loop.time() >= next_rules:
                    next_rules = loop.time() + RULES_SECONDS
                    await self.apply_rules()
            except (FrontdeskError, SQLAlchemyError, OSError) as error:
                log.warning("keeper.not_done", error=str(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), EXPORT_SECONDS)

    async def apply_rules(self) -> None:
        """Everything that is due now.

        Raises:
            StoreUnavailable, StorageFull: the next round does the rest.
        """
        now = await self._log.now_ms()
        await self._after_a_restart(now)
        await self._finish(now)
        self.metrics.closed.inc(
            await retention.close_idle(self._database, self._log, self._settings, now)
        )
        while True:
            count = await retention.delete_due(self._database, self._log, self._settings, now)
            self.metrics.deleted.inc(count)
            if count < retention.BATCH:
                break
        await asyncio.to_thread(retention.forget_old_marks, self._database, now)
        expired = await asyncio.to_thread(export_jobs.expire, self._database, self._data_dir)
        self.metrics.exports.labels("expired").inc(expired)

    async def _after_a_restart(self, now: int) -> None:
        run = await self._log.run_id()
        if run == self._store_run:
            return
        back = await deletion.repeat_recent(self._database, self._log, now - STORE_MEMORY_MS)
        if back:
            log.warning("keeper.erased_again", conversations=back)
        self._store_run = run

    async def _finish(self, now: int) -> None:
        before = now - PATIENCE_MS
        self.metrics.erasures.inc(await self._eraser.resume(now_ms() - PATIENCE_MS))
        await retention.finish_pending(self._database, self._log, before)
        left = await asyncio.to_thread(deletion.pending, self._database, before)
        self.metrics.pending.set(len(left))

    async def make_exports(self) -> None:
        """Write the exports that were asked for. Raises StoreUnavailable."""
        while True:
            row = await asyncio.to_thread(export_jobs.claim, self._database)
            if row is None:
                return
            outcome = await asyncio.to_thread(
                export_jobs.write, self._database, self._data_dir, row
            )
            self.metrics.exports.labels(outcome).inc()
            log.info("keeper.export", export=row.id, outcome=outcome)


class KeeperMetrics:
    """docs/metrics.md has the names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.closed = Counter(
            "frontdesk_retention_closed", "Idle conversations closed.", registry=registry
        )
        self.deleted = Counter(
            "frontdesk_retention_deleted", "Conversations deleted by a rule.", registry=registry
        )
        self.erasures = Counter(
            "frontdesk_erasures_resumed",
            "Erasures that another process had left unfinished.",
            registry=registry,
        )
        self.pending = Gauge(
            "frontdesk_deletions_pending",
            "Conversations that should have been deleted a minute ago; at most 100 are counted.",
            registry=registry,
        )
        self.exports = Counter(
            "frontdesk_exports", "Exports by how they ended.", ["outcome"], registry=registry
        )
        for outcome in ("ready", "failed", "stopped", "expired"):
            self.exports.labels(outcome)
