"""``frontdesk keys``: keys of the OpenAI-compatible API and of calls, without a running server."""

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from chatbot.record.database import Database
from chatbot.server.api_keys import create_key, list_keys, revoke_key
from chatbot.settings import load_settings
from chatbot.terminal import console, print_rows

keys = typer.Typer(help="Keys of the OpenAI-compatible API and of calls.", no_args_is_help=True)
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where everything is kept.")]
Name = Annotated[str, typer.Argument(help="What the key is for.")]
Site = Annotated[str, typer.Option("--site", help="The site whose calls it may assist.")]


def add_commands(app: typer.Typer) -> None:
    """Add ``keys`` to the command."""
    app.add_typer(keys, name="keys")


@contextmanager
def _record(data_dir: Path | None) -> Iterator[Database]:
    from chatbot.bootstrap import open_database

    database = open_database(load_settings(data_dir=data_dir))
    try:
        yield database
    finally:
        database.close()


@keys.command()
def create(name: Name, site: Site = "", data_dir: DataDir = None) -> None:
    """Make a key. It is printed alone on standard output, and cannot be shown again."""
    with _record(data_dir) as database:
        row, key = create_key(database, getpass.getuser(), name[:64], site)
    console(stderr=True).print(f"{row.id} for {row.name}. Keep it: it is not shown again.")
    print(key)


@keys.command("list")
def list_(data_dir: DataDir = None) -> None:
    """Every key, also those that are revoked."""
    names = ["id", "name", "site", "begins with", "made", "by", "revoked"]
    with _record(data_dir) as database:
        rows = [
            [
                row.id,
                row.name,
                row.site,
                row.hint,
                _day(row.created_at),
                row.created_by,
                _day(row.revoked_at),
            ]
            for row in list_keys(database)
        ]
    print_rows(console(), names, rows)


@keys.command()
def revoke(key_id: str, data_dir: DataDir = None) -> None:
    """Let a key in no more, from the next request on."""
    with _record(data_dir) as database:
        revoke_key(database, getpass.getuser(), key_id)
    console().print(f"{key_id} is revoked.")


def _day(at: int | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%d %H:%M")
