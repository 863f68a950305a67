"""Upgrading a record that an earlier release wrote: every revision, with rows in every table."""

from collections.abc import Iterator
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    JSON,
    Boolean,
    Float,
    Integer,
    MetaData,
    Table,
    inspect,
    select,
)

from chatbot.record.database import MIGRATIONS, Database
from chatbot.record.tables import Base


def config_of() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def revisions() -> list[str]:
    """All but the newest, the oldest first."""
    script = ScriptDirectory.from_config(config_of())
    found = [entry.revision for entry in script.walk_revisions()]
    assert len(found) == len(set(found))
    return found[::-1][:-1]


@pytest.fixture
def old(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()


def move(database: Database, target: str, *, down: bool = False) -> None:
    config = config_of()
    with database.engine.begin() as connection:
        config.attributes["connection"] = connection
        (command.downgrade if down else command.upgrade)(config, target)


def fill(database: Database) -> dict[str, dict[str, Any]]:
    """One row in every table, as the schema of that revision has it; the rows by table."""
    metadata = MetaData()
    metadata.reflect(database.engine)
    written = {}
    with database.engine.begin() as connection:
        for table in metadata.sorted_tables:
            if table.name != "alembic_version":
                written[table.name] = {c.name: sample(table, c) for c in table.columns}
                connection.execute(table.insert().values(written[table.name]))
    return written


def sample(table: Table, column: Any) -> Any:
    """A value that fits; the same wherever a foreign key points."""
    if isinstance(column.type, JSON):
        return {"kept": True}
    if isinstance(column.type, Boolean):
        return False
    if isinstance(column.type, Float):
        return 0.5
    if isinstance(column.type, Integer):
        return 1
    return "live" if (table.name, column.name) == ("versions", "state") else "x"


@pytest.mark.parametrize("revision", revisions())
def test_a_record_of_an_earlier_release_is_upgraded_with_its_rows(
    old: Database, revision: str
) -> None:
    move(old, revision)
    written = fill(old)
    old.migrate()
    with old.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        for name, row in written.items():
            table = Table(name, MetaData(), autoload_with=old.engine)
            kept = connection.execute(select(table)).mappings().one()
            assert {key: kept[key] for key in row} == row, name


@pytest.mark.parametrize("revision", revisions())
def test_a_step_can_be_taken_back_and_done_again(old: Database, revision: str) -> None:
    """Going back keeps the rows that the earlier release knows."""
    old.migrate()
    with old.engine.begin() as connection:
        sites = Base.metadata.tables["sites"]
        values = {column.name: sample(sites, column) for column in sites.columns}
        connection.execute(sites.insert().values(values))
    move(old, revision, down=True)
    assert "sites" in inspect(old.engine).get_table_names()
    old.migrate()
    with old.engine.connect() as connection:
        assert connection.execute(select(Base.metadata.tables["sites"].c.name)).all() == [("x",)]
