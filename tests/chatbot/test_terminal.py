"""What is printed for people: nothing of it is cut, in a narrow terminal or through a pipe."""

import io
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.console import Console

from chatbot.bootstrap import artifacts_dir, open_database, open_versions
from chatbot.record.database import Database, sqlite_url
from chatbot.server.api_keys import create_key
from chatbot.settings import load_settings
from chatbot.terminal import make_table, print_facts, print_rows
from chatbot.up import Plan, print_addresses
from tests.chatbot.versions import make_version

COMMAND = [sys.executable, "-m", "chatbot.cli"]


def printed(width: int, terminal: bool = True) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=width, force_terminal=terminal, color_system=None), text


def in_a_terminal(*arguments: str, columns: int, data_dir: Path) -> str:
    """What a real terminal of so many columns gets."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, columns))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    environment |= {"NO_COLOR": "1", "TERM": "xterm"}
    with subprocess.Popen(
        [*COMMAND, *arguments, "--data-dir", str(data_dir)],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        os.close(theirs)
        parts = []
        try:
            while part := os.read(ours, 65536):
                parts.append(part)
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(ours)
    assert process.returncode == 0
    return b"".join(parts).decode()


def through_a_pipe(*arguments: str, data_dir: Path) -> str:
    command = [*COMMAND, *arguments, "--data-dir", str(data_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_row_is_whole_at_any_width(width: int) -> None:
    out, text = printed(width)
    row = ["v20261128-154210-3f9ac1", "candidate", "smollm2-135m", "[bold]", "2026-11-28 15:42"]
    print_rows(out, ["version", "state", "base", "note", "made"], [row, row])
    shown = text.getvalue()
    if width > 20:
        assert shown.count(row[0]) == 2
    assert "…" not in shown
    flat = "".join(shown.split())
    for cell in row:
        assert flat.count("".join(cell.split())) == 2


def test_a_table_where_there_is_room_and_lines_where_there_is_none() -> None:
    out, text = printed(80)
    print_rows(out, ["id", "name"], [["k-1", "x" * 50]])
    assert "┃" in text.getvalue()
    out, text = printed(40)
    print_rows(out, ["id", "name"], [["k-1", "word " * 12]])
    assert text.getvalue().splitlines()[0].strip() == "k-1"
    assert max(map(len, text.getvalue().splitlines())) <= 40


def test_facts_can_be_copied_as_one() -> None:
    out, text = printed(30)
    path = "/a/very/long/path/to/the/data/of/it/admin-password"
    print_facts(out, [("login", path), ("found", "one\ntwo")])
    assert path in text.getvalue()
    assert text.getvalue().splitlines()[-1].strip() == "two"


def test_cells_of_a_table_are_folded() -> None:
    out, text = printed(20)
    table = make_table("a", "b")
    table.add_row("x" * 30, "y" * 30)
    out.print(table)
    assert text.getvalue().count("x") == 30


def test_the_start_banner_names_its_files_whole(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long-" * 12)
    out, text = printed(80)
    print_addresses(Plan(load_settings(data_dir=data_dir)), out)
    assert str(data_dir / "admin-password") in text.getvalue()
    assert str(data_dir / "admin-token") in text.getvalue()


def test_config_is_whole_in_a_terminal_and_through_a_pipe(tmp_path: Path) -> None:
    for shown in (
        in_a_terminal("config", columns=80, data_dir=tmp_path),
        through_a_pipe("config", data_dir=tmp_path),
    ):
        assert "FRONTDESK_CONSOLE_PORT" in shown
        assert "…" not in shown
        assert str(tmp_path) in "".join(shown.split()).replace("│", "")


def test_keys_are_whole_in_a_terminal_and_through_a_pipe(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path))
    database.migrate()
    row, _ = create_key(database, "somebody-with-a-name", "n" * 40, "")
    database.close()
    assert row.id in in_a_terminal("keys", "list", columns=60, data_dir=tmp_path)
    piped = through_a_pipe("keys", "list", data_dir=tmp_path)
    assert row.id in piped
    assert row.name in piped


def test_versions_are_whole_in_a_terminal_and_through_a_pipe(tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path)
    database = open_database(settings)
    name = "v20261128-154210-3f9ac1d2"
    versions = open_versions(settings, database)
    versions.register(make_version(artifacts_dir(settings), name))
    database.close()
    assert name in in_a_terminal("models", "list", columns=60, data_dir=tmp_path)
    assert name in through_a_pipe("models", "list", data_dir=tmp_path)
