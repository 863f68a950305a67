"""Opening the record. Synchronous on purpose: FastAPI runs ``def`` endpoints in its thread pool,
and asyncio code calls in through ``asyncio.to_thread``; one code path serves both databases.
"""

import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import OperationalError as SqliteError
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DatabaseError, DataError, InterfaceError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from chatbot.errors import InputError, StorageFull, StoreUnavailable

MIGRATIONS = Path(__file__).parent / "migrations"
SQLITE_WAIT_SECONDS = 30


def sqlite_url(data_dir: Path) -> str:
    """URL of the embedded database under ``data_dir``."""
    return f"sqlite:///{(data_dir / 'record.db').absolute()}"


class Database:
    """A SQL engine and its sessions. ``with database.session() as s`` is one transaction."""

    def __init__(self, url: str) -> None:
        self.url = url
        arguments: dict[str, Any] = {
            "pool_pre_ping": True,
            "hide_parameters": True,  # errors are logged, and parameters are people's words
        }
        if url.startswith("sqlite"):
            arguments["connect_args"] = {"timeout": SQLITE_WAIT_SECONDS}
        self.engine: Engine = create_engine(url, **arguments)
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _sqlite_pragmas)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on an exception.

        Raises:
            StoreUnavailable: the database cannot be reached.
            StorageFull: it has no room.
        """
        with _mapped_errors(), self._sessions.begin() as session:
            yield session

    @contextmanager
    def exclusive_session(self, name: str) -> Iterator[Session]:
        """One transaction that runs alone among all that give the same ``name``, in every
        process: what it reads stays true until it commits. Raises as :meth:`session`."""
        with self.session() as session:
            _lock(session.connection(), name)
            yield session

    def migrate(self) -> None:
        """Bring the schema to the newest revision; safe when it already is, and when several
        processes start at once: one migrates, the others wait for it.

        Raises:
            StoreUnavailable: the database cannot be reached, or a newer release wrote it.
            StorageFull: it has no room.
        """
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        head = ScriptDirectory.from_config(config).get_current_head()
        with _mapped_errors():
            if self._revision() == head:
                return
            with self.engine.begin() as connection:
                _lock(connection, "migrate")
                config.attributes["connection"] = connection
                try:
                    command.upgrade(config, "head")
                except CommandError as error:
                    raise StoreUnavailable(
                        f"the database was written by another release of Frontdesk ({error}); "
                        "start the release that wrote it, or a newer one"
                    ) from error

    def _revision(self) -> str | None:
        with self.engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
            return None if found is None else str(found)

    def ping(self) -> None:
        """Raise StoreUnavailable unless a query is answered."""
        with self.session() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        self.engine.dispose()


def _lock(connection: Connection, name: str) -> None:
    """Hold ``name`` until the transaction ends. SQLite has one writer at a time anyway: taking
    its write lock first makes the whole transaction, reads included, exclusive."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        return
    key = zlib.crc32(f"frontdesk:{name}".encode())
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


@contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except (DataError, OverflowError) as error:  # text with U+0000, a number beyond 64 bits
        cause = str(error.orig if isinstance(error, DataError) else error).strip()
        raise InputError(f"a value does not fit the database: {cause}") from error
    except (DatabaseError, InterfaceError) as error:
        # its subclasses but these are mistakes in a statement: ours, and they stay what they are
        if type(error) in (DatabaseError, OperationalError, InterfaceError):
            raise _map(error) from error
        raise


def _map(error: DatabaseError | InterfaceError) -> StorageFull | StoreUnavailable:
    cause = str(error.orig).strip()
    if " is full" in cause or "No space" in cause:
        return StorageFull(f"the database has no room: {cause}")
    return StoreUnavailable(f"the database cannot be used: {cause}")


def _sqlite_pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    _write_ahead(cursor)
    # secure_delete: what was erased is overwritten, not only unlinked from the file's pages
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _write_ahead(cursor: Any) -> None:
    """The switch to WAL needs the file alone and does not wait for it (SQLite documentation,
    "Write-Ahead Logging"), so processes that open a new file at once have to try again."""
    deadline = time.monotonic() + SQLITE_WAIT_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except SqliteError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
