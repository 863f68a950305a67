"""Opening the record. Synchronous on purpose: FastAPI runs ``def`` endpoints in its thread pool,
and asyncio code calls in through ``asyncio.to_thread``; one code path serves both databases.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from chatbot.errors import StorageFull, StoreUnavailable

MIGRATIONS = Path(__file__).parent / "migrations"


def sqlite_url(data_dir: Path) -> str:
    """URL of the embedded database under ``data_dir``."""
    return f"sqlite:///{(data_dir / 'record.db').absolute()}"


class Database:
    """A SQL engine and its sessions. ``with database.session() as s`` is one transaction."""

    def __init__(self, url: str) -> None:
        self.url = url
        arguments: dict[str, Any] = {"pool_pre_ping": True}
        if url.startswith("sqlite"):
            arguments["connect_args"] = {"timeout": 30}
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
        try:
            with self._sessions.begin() as session:
                yield session
        except OperationalError as error:
            raise _map(error) from error

    def migrate(self) -> None:
        """Bring the schema to the newest revision; safe when it already is."""
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.set_main_option("sqlalchemy.url", self.url.replace("%", "%%"))
        try:
            command.upgrade(config, "head")
        except OperationalError as error:
            raise _map(error) from error

    def ping(self) -> None:
        """Raise StoreUnavailable unless a query is answered."""
        with self.session() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        self.engine.dispose()


def _map(error: OperationalError) -> StorageFull | StoreUnavailable:
    cause = str(error.orig)
    if "full" in cause or "No space" in cause:
        return StorageFull(f"the database has no room: {cause}")
    return StoreUnavailable(f"the database cannot be used: {cause}")


def _sqlite_pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
