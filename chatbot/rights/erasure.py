"""Erasing a person: log, record, search, data sets, exports; and the receipt of it.

What the receipt cannot take back it names: versions that learned from the person's words. They are
looked up each time it is read, since a training that was under way may end later.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import select

from chatbot.conversation.interface import ConversationLog
from chatbot.errors import FrontdeskError, NotFound, RequestRefused
from chatbot.record.audit import record
from chatbot.record.clock import now_ms
from chatbot.record.database import Database
from chatbot.record.tables import ErasedConversation, Erasure
from chatbot.rights import datasets, deletion
from chatbot.rights.export_jobs import erase_exports
from chatbot.rights.holds import require_no_hold
from chatbot.rights.people import DONE, LOCK, RUNNING, Person, conversations_of
from chatbot.training_runs import TrainingRuns

log = structlog.get_logger()
OnProgress = Callable[[int, int], None]  # conversations done, of how many


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was erased, and what saw it. Times: Unix ms. ``versions``: those that learned from the
    person's words (``conversations`` None: not known any more)."""

    id: str
    site: str
    visitor: str
    state: str
    requested_by: str
    reason: str
    requested_at: int
    completed_at: int | None
    conversations: list[str]
    events: int
    reviews: int
    dataset_dialogues: int
    runs: list[str]
    cancelled_runs: list[str]
    exports: list[str]
    versions: list[dict[str, Any]]


class Eraser:
    """Erases people. Any number of processes may have one."""

    def __init__(
        self, database: Database, conversations: ConversationLog, runs: TrainingRuns, data_dir: Path
    ) -> None:
        self._database = database
        self._log = conversations
        self._runs = runs
        self._data_dir = data_dir

    async def erase(
        self,
        person: Person,
        *,
        actor: str,
        reason: str,
        request_id: str = "",
        on_progress: OnProgress = lambda done, total: None,
    ) -> Receipt:
        """Erase everything that the person has said up to now. The same ``request_id`` again
        goes on with the same erasure, or gives its receipt.

        Raises:
            Held: a legal hold forbids it; nothing was touched.
            RequestRefused: without a reason.
            StoreUnavailable, StorageFull: begun, and taken up again by itself.
        """
        if not reason.strip():
            raise RequestRefused("an erasure needs a reason: say who asked for it")
        name = await asyncio.to_thread(self._begin, person, actor, reason, request_id)
        await self._go_on(name, on_progress)
        return await self.receipt(name)

    async def resume(self, before: int) -> int:
        """Go on with erasures that were asked for before a moment (Unix ms) and have not ended;
        how many ended now."""
        names = await asyncio.to_thread(self._unfinished, before)
        for name in names:
            await self._go_on(name, lambda done, total: None)
        return len(names)

    async def receipt(self, erasure_id: str) -> Receipt:
        """Raises NotFound."""
        return await asyncio.to_thread(self._receipt, erasure_id)

    def all(self) -> Sequence[Erasure]:
        """The newest first."""
        with self._database.session() as session:
            return session.scalars(select(Erasure).order_by(Erasure.requested_at.desc())).all()

    # -- the steps

    def _begin(self, person: Person, actor: str, reason: str, request_id: str) -> str:
        request_id = request_id or secrets.token_hex(16)
        with self._database.exclusive_session(LOCK) as session:
            found = session.scalar(select(Erasure).where(Erasure.request_id == request_id))
            if found is not None:
                if (found.site, found.visitor) != (person.site, person.visitor):
                    raise RequestRefused("this request_id was used for another person")
                return found.id
            require_no_hold(session, person)
            row = Erasure(
                id=f"erasure-{secrets.token_hex(6)}",
                request_id=request_id,
                site=person.site,
                visitor=person.visitor,
                state=RUNNING,
                requested_by=actor,
                reason=reason.strip(),
                receipt={},
                requested_at=now_ms(),
            )
            session.add(row)
            record(
                session, actor, "person.erase", person.visitor, reason=reason,
                data={"erasure": row.id, "site": person.site},
            )  # fmt: skip
            return row.id

    def _unfinished(self, before: int) -> list[str]:
        with self._database.session() as session:
            wanted = select(Erasure.id).where(
                Erasure.state == RUNNING, Erasure.requested_at <= before
            )
            return list(session.scalars(wanted.order_by(Erasure.requested_at)))

    async def _go_on(self, erasure_id: str, on_progress: OnProgress) -> None:
        row = await asyncio.to_thread(self._row, erasure_id)
        if row.state == DONE:
            return
        person = Person(row.site, row.visitor)
        counts: dict[str, Any] = {"events": 0, "reviews": 0} | row.receipt
        # of the first try: what the person says after it is another conversation
        at = counts.setdefault("at", await self._log.now_ms())
        await asyncio.to_thread(self._note, erasure_id, counts)
        found = await conversations_of(self._database, self._log, person, at)
        names = await asyncio.to_thread(self._mark, erasure_id, found, at)
        for done, name in enumerate(names):
            on_progress(done, len(names))
            deleted = await deletion.carry_out(self._database, self._log, name)
            counts["events"] += deleted.events
            counts["reviews"] += deleted.reviews
            await asyncio.to_thread(self._note, erasure_id, counts)
        on_progress(len(names), len(names))
        await asyncio.to_thread(self._forget_copies, erasure_id, names, counts)

    def _mark(self, erasure_id: str, found: list[str], now: int) -> list[str]:
        """All conversations of the erasure: those found now, and those of an earlier try."""
        with self._database.exclusive_session(LOCK) as session:
            deletion.mark(session, found, now, erasure_id=erasure_id)
            session.flush()
            return list(
                session.scalars(
                    select(ErasedConversation.conversation_id).where(
                        ErasedConversation.erasure_id == erasure_id
                    )
                )
            )

    def _note(self, erasure_id: str, counts: dict[str, Any]) -> None:
        # under the lock: it must not write over what another process ended with meanwhile
        with self._database.exclusive_session(LOCK) as session:
            row = session.get(Erasure, erasure_id)
            if row is not None and row.state == RUNNING:
                row.receipt = dict(counts)

    def _forget_copies(self, erasure_id: str, names: list[str], counts: dict[str, Any]) -> None:
        """Data sets and exports; then the erasure is done."""
        # before the data sets lose them: older versions are known by their runs' data alone
        trained = datasets.trained_on(self._database, self._data_dir, names)
        seen = {version.version_id: version.conversations for version in trained}
        counts["versions"] = seen | {
            name: number for name, number in counts.get("versions", {}).items() if number
        }
        self._note(erasure_id, counts)
        cancelled = self._stop_training(erasure_id, names)
        changed = datasets.forget(self._data_dir, names)
        gone = erase_exports(self._database, self._data_dir, names)
        before = {name: list(counts.get(name, [])) for name in ("runs", "cancelled", "exports")}
        counts |= {
            "conversations": sorted(names),
            "dialogues": counts.get("dialogues", 0) + sum(run.dialogues for run in changed),
            "runs": sorted({*before["runs"], *(run.run_id for run in changed)}),
            "cancelled": sorted({*before["cancelled"], *cancelled}),
            "exports": sorted({*before["exports"], *gone}),
        }
        with self._database.exclusive_session(LOCK) as session:
            row = session.get(Erasure, erasure_id)
            if row is None or row.state == DONE:
                return  # another process was faster
            row.receipt, row.state, row.completed_at = dict(counts), DONE, now_ms()
            record(
                session, row.requested_by, "person.erased", row.visitor,
                data={"erasure": row.id, "conversations": len(names)},
            )  # fmt: skip

    def _stop_training(self, erasure_id: str, names: list[str]) -> list[str]:
        """A run that is learning these words at this moment must not make a version of them."""
        active = self._runs.active()
        if active is None or active.id not in datasets.runs_with(self._data_dir, names):
            return []
        try:
            self._runs.request_cancel(active.id, "frontdesk")
        except FrontdeskError as error:  # it ended in this moment: the receipt names its version
            log.info("erasure.run_not_cancelled", run=active.id, error=str(error))
            return []
        log.warning("erasure.run_cancelled", run=active.id, erasure=erasure_id)
        return [active.id]

    # -- the receipt

    def _row(self, erasure_id: str) -> Erasure:
        with self._database.session() as session:
            row = session.get(Erasure, erasure_id)
        if row is None:
            raise NotFound(f"there is no erasure {erasure_id}")
        return row

    def _receipt(self, erasure_id: str) -> Receipt:
        row = self._row(erasure_id)
        told = row.receipt
        names = list(told.get("conversations", []))
        trained = datasets.trained_on(
            self._database, self._data_dir, names, dict(told.get("versions", {}))
        )
        return Receipt(
            id=row.id,
            site=row.site,
            visitor=row.visitor,
            state=row.state,
            requested_by=row.requested_by,
            reason=row.reason,
            requested_at=row.requested_at,
            completed_at=row.completed_at,
            conversations=names,
            events=told.get("events", 0),
            reviews=told.get("reviews", 0),
            dataset_dialogues=told.get("dialogues", 0),
            runs=told.get("runs", []),
            cancelled_runs=told.get("cancelled", []),
            exports=told.get("exports", []),
            versions=[asdict(version) for version in trained],
        )
