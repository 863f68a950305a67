"""``frontdesk staff``: accounts for the desk and the console, without a running server."""

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from chatbot.record.database import Database
from chatbot.server.staff import Role, create_staff, delete_staff, list_staff
from chatbot.settings import load_settings
from chatbot.terminal import console, print_rows

staff = typer.Typer(help="Accounts for the desk and the console.", no_args_is_help=True)
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where everything is kept.")]


def add_commands(app: typer.Typer) -> None:
    """Add ``staff`` to the command."""
    app.add_typer(staff, name="staff")


@contextmanager
def _record(data_dir: Path | None) -> Iterator[Database]:
    from chatbot.bootstrap import open_database

    database = open_database(load_settings(data_dir=data_dir))
    try:
        yield database
    finally:
        database.close()


@staff.command()
def add(
    username: str,
    role: Annotated[Role, typer.Option(help="agent, reviewer or admin.")] = "agent",
    data_dir: DataDir = None,
) -> None:
    """Add a member of staff; asks for the password."""
    password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    with _record(data_dir) as database:
        create_staff(database, getpass.getuser(), username, password, role)
    console().print(f"{username} may log in as {role}.")


@staff.command()
def remove(username: str, data_dir: DataDir = None) -> None:
    """Take a member of staff's access away."""
    with _record(data_dir) as database:
        delete_staff(database, getpass.getuser(), username)
    console().print(f"{username} may not log in any more.")


@staff.command("list")
def list_(data_dir: DataDir = None) -> None:
    """Everybody who may log in."""
    with _record(data_dir) as database:
        rows = [[member.username, member.role] for member in list_staff(database)]
    print_rows(console(), ["user name", "role"], rows)
