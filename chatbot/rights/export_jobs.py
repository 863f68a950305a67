"""Exports that are made on the server: queued in SQL, written by whoever keeps house, kept in
``<data_dir>/exports`` for some hours.

Which conversations a file holds is in SQL before the file has them. So an erasure finds the files
of a person, also one that is being written at that moment, and whoever writes it notices.
"""

import contextlib
import os
import secrets
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from chatbot.errors import Conflict, NotFound, StorageFull
from chatbot.record.audit import record
from chatbot.record.clock import now_ms
from chatbot.record.database import Database
from chatbot.record.tables import Export, ExportedConversation
from chatbot.rights import export
from chatbot.rights.export import Format, Wanted
from chatbot.rights.rules import HOUR_MS

# queued -> running -> ready | failed; then expired, deleted (by staff) or erased (with a person)
QUEUED, RUNNING, READY = "queued", "running", "ready"
GONE = ("failed", "expired", "deleted", "erased")
LOCK = "exports"
SILENT_MS = 60_000  # whoever writes an export and is silent so long is taken for dead


def request_export(
    database: Database,
    actor: str,
    request_id: str,
    wanted: Wanted,
    format_name: Format,
    *,
    redact: bool,
    hours: int,
) -> tuple[Export, bool]:
    """(the export, whether it is new): the same ``request_id`` is the same export."""
    with database.exclusive_session(LOCK) as session:
        found = session.scalar(select(Export).where(Export.request_id == request_id))
        if found is not None:
            return found, False
        now = now_ms()
        row = Export(
            id=f"export-{secrets.token_hex(6)}",
            request_id=request_id,
            state=QUEUED,
            format=format_name,
            redact=redact,
            filter=asdict(wanted),
            requested_by=actor,
            conversations=0,
            total=0,
            size=0,
            error="",
            heartbeat_at=0,
            created_at=now,
            expires_at=now + hours * HOUR_MS,
        )
        session.add(row)
        record(session, actor, "export.create", row.id, data={"filter": row.filter})
        return row, True


def list_exports(database: Database) -> Sequence[Export]:
    """The newest first."""
    with database.session() as session:
        return session.scalars(select(Export).order_by(Export.created_at.desc())).all()


def get_export(database: Database, export_id: str) -> Export:
    """Raises NotFound."""
    with database.session() as session:
        row = session.get(Export, export_id)
    if row is None:
        raise NotFound(f"there is no export {export_id}")
    return row


def open_export(database: Database, data_dir: Path, export_id: str, actor: str) -> Path:
    """The finished file, for a download, which goes into the audit.

    Raises:
        NotFound
        Conflict: it is not ready yet, or gone; says why.
    """
    row = get_export(database, export_id)
    path = _path(data_dir, row)
    if row.state != READY or row.expires_at <= now_ms():
        raise Conflict(f"export {export_id} is {row.state}{_hint(row)}")
    if not path.is_file():
        raise NotFound(f"the file of export {export_id} is not on this machine: make a new one")
    with database.session() as session:
        record(session, actor, "export.download", export_id)
    return path


def delete_export(database: Database, data_dir: Path, export_id: str, actor: str) -> Export:
    """Delete the file now. Again: nothing more happens. Raises NotFound."""
    get_export(database, export_id)
    with database.exclusive_session(LOCK) as session:
        row = session.get_one(Export, export_id)
        if row.state not in GONE:
            _end(session, row, "deleted")
            record(session, actor, "export.delete", export_id)
    _remove(data_dir, row)
    return row


def erase_exports(database: Database, data_dir: Path, names: Collection[str]) -> list[str]:
    """Delete every export that holds one of these conversations; their ids."""
    wanted = list(names)
    gone: list[Export] = []
    with database.exclusive_session(LOCK) as session:
        for start in range(0, len(wanted), 500):
            holding = select(ExportedConversation.export_id).where(
                ExportedConversation.conversation_id.in_(wanted[start : start + 500])
            )
            rows = session.scalars(select(Export).where(Export.id.in_(holding))).all()
            for row in rows:
                _end(session, row, "erased")
                row.error = "it held words of a person who was erased: make a new one"
            gone += rows
    for row in gone:
        _remove(data_dir, row)
    return sorted({row.id for row in gone})


def expire(database: Database, data_dir: Path) -> int:
    """Delete what has expired, and files that belong to nothing any more; how many expired."""
    with database.exclusive_session(LOCK) as session:
        rows = session.scalars(
            select(Export).where(Export.state.not_in(GONE), Export.expires_at <= now_ms())
        ).all()
        for row in rows:
            _end(session, row, "expired")
        kept = set(session.scalars(select(Export.id).where(Export.state.not_in(GONE))))
    for path in _folder(data_dir).glob("export-*"):
        if path.name.partition(".")[0] not in kept:
            path.unlink(missing_ok=True)
    return len(rows)


# -- writing


def claim(database: Database) -> Export | None:
    """The next export to write: a queued one, or one whose writer died."""
    silent = now_ms() - SILENT_MS
    waiting = or_(
        Export.state == QUEUED, (Export.state == RUNNING) & (Export.heartbeat_at < silent)
    )
    next_one = select(Export).where(waiting).order_by(Export.created_at).limit(1)
    with database.session() as session:
        if session.scalar(next_one) is None:
            return None  # asked every few seconds: without taking the lock
    with database.exclusive_session(LOCK) as session:
        row = session.scalar(next_one)
        if row is not None:
            row.state, row.heartbeat_at, row.conversations = RUNNING, now_ms(), 0
            session.execute(
                delete(ExportedConversation).where(ExportedConversation.export_id == row.id)
            )
        return row


class Stopped(Exception):
    """The export was deleted, erased or taken over while it was written."""


def write(database: Database, data_dir: Path, row: Export) -> str:
    """Write a claimed export; how it ended: ready, failed or stopped.

    Raises:
        StoreUnavailable: it is taken up again later.
    """
    draft = _path(data_dir, row).with_suffix(f".{secrets.token_hex(4)}.part")
    try:
        draft.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        size = _fill(database, draft, row)
        with database.exclusive_session(LOCK) as session:
            current = session.get_one(Export, row.id)
            if current.state != RUNNING:
                raise Stopped
            draft.replace(_path(data_dir, row))
            current.state, current.size = READY, size
        return "ready"
    except Stopped:
        return "stopped"
    except (OSError, StorageFull) as error:
        _fail(
            database, row.id, f"it cannot be written: {getattr(error, 'strerror', None) or error}"
        )
        return "failed"
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _fill(database: Database, draft: Path, row: Export) -> int:
    """Bytes of the file."""
    wanted = Wanted(**row.filter)
    total = export.count(database, wanted)
    form: Format = "csv" if row.format == "csv" else "jsonl"
    done = 0
    with os.fdopen(
        os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600),
        "w",
        encoding="utf-8",
        newline="",
    ) as file:
        file.write(export.header(form))
        for names in export.batches(database, wanted):
            _enter(database, row.id, names, done, total)
            for line in export.lines(database, names, form, row.redact):
                file.write(line)
            done += len(names)
        _enter(database, row.id, [], done, total)
        file.flush()
        os.fsync(file.fileno())
    return draft.stat().st_size


def _enter(database: Database, export_id: str, names: list[str], done: int, total: int) -> None:
    """Say in SQL what comes into the file next. Raises Stopped."""
    with database.exclusive_session(LOCK) as session:
        row = session.get(Export, export_id)
        if row is None or row.state != RUNNING:
            raise Stopped
        for name in names:
            session.merge(ExportedConversation(export_id=export_id, conversation_id=name))
        row.conversations, row.total, row.heartbeat_at = done, max(total, done), now_ms()


def _fail(database: Database, export_id: str, error: str) -> None:
    with database.exclusive_session(LOCK) as session:
        row = session.get(Export, export_id)
        if row is not None and row.state == RUNNING:
            _end(session, row, "failed")
            row.error = error


def _end(session: Session, row: Export, state: str) -> None:
    row.state = state
    session.execute(delete(ExportedConversation).where(ExportedConversation.export_id == row.id))


def _folder(data_dir: Path) -> Path:
    return data_dir / "exports"


def _path(data_dir: Path, row: Export) -> Path:
    return _folder(data_dir) / f"{row.id}.{row.format}"


def _remove(data_dir: Path, row: Export) -> None:
    for path in _folder(data_dir).glob(f"{row.id}.*"):
        path.unlink(missing_ok=True)


def _hint(row: Export) -> str:
    return f": {row.error}" if row.error else "" if row.state in GONE else " and not ready yet"
