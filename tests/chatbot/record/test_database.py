"""The record's schema, transactions and failures, on SQLite and (where given) PostgreSQL."""

import logging
import multiprocessing
import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import IntegrityError

from chatbot.errors import StorageFull, StoreUnavailable
from chatbot.record.database import MIGRATIONS, Database, sqlite_url
from chatbot.record.tables import Audit, Base, Conversation, EventRow, Version


def test_migrations_make_exactly_the_tables(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        found = inspect(connection)
        for name, table in Base.metadata.tables.items():
            key = found.get_pk_constraint(name)["constrained_columns"]
            assert key == [column.name for column in table.primary_key]
        indexes = {index["name"]: index for index in found.get_indexes("versions")}
        assert indexes["one_live_version"]["unique"]


def test_migrating_again_changes_nothing(database: Database) -> None:
    with database.session() as session:
        session.add(Audit(actor="a", action="x", data={}, at=1))
    database.migrate()
    with database.session() as session:
        assert session.scalars(select(Audit.actor)).all() == ["a"]


def test_migrating_leaves_logging_alone(
    database_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.getLogger("alembic").level)
    opened = Database(database_url)
    opened.migrate()
    opened.close()
    assert (root.level, list(root.handlers), logging.getLogger("alembic").level) == before
    assert not logging.getLogger("chatbot").disabled
    assert capfd.readouterr() == ("", "")


def _migrate(url: str, barrier: "multiprocessing.synchronize.Barrier") -> None:
    database = Database(url)
    barrier.wait(30)
    database.migrate()
    database.ping()
    database.close()


def test_processes_that_start_at_once_migrate_once(database_url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(3)
    processes = [spawn.Process(target=_migrate, args=(database_url, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_a_schema_of_another_release_is_named(database: Database) -> None:
    with database.session() as session:
        session.execute(text("UPDATE alembic_version SET version_num = 'ffff'"))
    with pytest.raises(StoreUnavailable, match="another release"):
        database.migrate()


def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    row = Audit(actor="a", action="x", data={}, at=1)
    with pytest.raises(IntegrityError):
        _write(database, row, _event("none"))
    with database.session() as session:
        assert session.scalars(select(Audit)).all() == []


def test_an_exclusive_session_sees_what_the_one_before_wrote(database: Database) -> None:
    """Eight threads read a number and write it back plus one: none is lost."""

    def add_one() -> None:
        with database.exclusive_session("count") as session:
            row = session.get(Conversation, "c")
            assert row is not None
            row.messages += 1

    with database.session() as session:
        session.add(_conversation("c"))
    threads = [threading.Thread(target=add_one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with database.session() as session:
        row = session.get(Conversation, "c")
        assert row is not None
        assert row.messages == 8


def test_events_need_their_conversation(database: Database) -> None:
    with pytest.raises(IntegrityError):
        _write(database, _event("none"))


def test_two_live_versions_are_refused_by_the_database(database: Database) -> None:
    rows = [
        Version(id=name, state="live", base_model="m", manifest={}, created_at=1) for name in "ab"
    ]
    with pytest.raises(IntegrityError):
        _write(database, *rows)


def test_an_unreachable_database_is_named() -> None:
    database = Database("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        database.ping()
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        database.migrate()


def test_a_folder_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="unable to open"):
        Database(sqlite_url(tmp_path / "missing")).ping()


def test_a_full_database_is_storage_full_and_loses_nothing(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path))
    database.migrate()
    with database.session() as session:
        session.add(Audit(actor="kept", action="x", data={}, at=1))
    with pytest.raises(StorageFull, match="no room"):
        _overfill(database)
    database.close()
    again = Database(sqlite_url(tmp_path))
    with again.session() as session:
        assert session.scalars(select(Audit.actor)).all() == ["kept"]
    again.close()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "record.db").write_bytes(b"this is not a database, only text" * 100)
    with pytest.raises(StoreUnavailable, match="not a database"):
        Database(sqlite_url(tmp_path)).ping()


def _write(database: Database, *rows: object) -> None:
    with database.session() as session:
        session.add_all(rows)


def _overfill(database: Database) -> None:
    """More than the file may grow to: SQLite then answers as it does on a full disk."""
    with database.session() as session:
        pages = session.execute(text("PRAGMA page_count")).scalar_one()
        session.execute(text(f"PRAGMA max_page_count = {pages}"))
        session.add(Audit(actor="a", action="x", reason="z" * 5_000_000, data={}, at=1))


def _event(conversation_id: str) -> EventRow:
    return EventRow(conversation_id=conversation_id, epoch="e", offset=1, type="t", at=1, data={})


def _conversation(name: str) -> Conversation:
    return Conversation(
        id=name, epoch="e", site="demo", visitor="v", status="bot", started_at=1, updated_at=1
    )


def test_the_migrations_can_be_taken_back(database: Database) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert inspect(database.engine).get_table_names() == ["alembic_version"]
    database.migrate()
    test_migrations_make_exactly_the_tables(database)
