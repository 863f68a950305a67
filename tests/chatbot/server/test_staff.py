"""Staff accounts and the first administrator."""

import stat
import threading
from pathlib import Path

import pytest

from chatbot.errors import Conflict, NotFound, RequestRefused, StorageFull
from chatbot.record.database import Database
from chatbot.server.staff import (
    check_password,
    create_staff,
    delete_staff,
    ensure_admin,
    find_staff,
    list_staff,
)


def _password(folder: Path) -> str:
    return (folder / "admin-password").read_text().strip()


def test_the_first_start_makes_an_administrator(database: Database, tmp_path: Path) -> None:
    ensure_admin(database, tmp_path)
    path = tmp_path / "admin-password"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    row = check_password(database, "admin", _password(tmp_path))
    assert row is not None
    assert row.role == "admin"
    assert row.password.startswith("$argon2id$")
    assert _password(tmp_path) not in row.password


def test_later_starts_change_nothing(database: Database, tmp_path: Path) -> None:
    ensure_admin(database, tmp_path)
    first = _password(tmp_path)
    ensure_admin(database, tmp_path)
    assert _password(tmp_path) == first
    assert len(list_staff(database)) == 1


def test_starts_at_once_agree_on_one_password(database: Database, tmp_path: Path) -> None:
    threads = [threading.Thread(target=ensure_admin, args=(database, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert check_password(database, "admin", _password(tmp_path)) is not None


def test_a_file_that_cannot_be_written_makes_no_account(database: Database, tmp_path: Path) -> None:
    with pytest.raises(StorageFull, match="admin-password"):
        ensure_admin(database, tmp_path / "missing")
    assert list_staff(database) == []


def test_passwords_are_checked(database: Database) -> None:
    create_staff(database, "t", "ada", "correct horse", "agent")
    assert check_password(database, "ada", "correct horse") is not None
    for name, password in (("ada", "wrong"), ("ada", ""), ("bob", "correct horse")):
        assert check_password(database, name, password) is None


def test_a_damaged_hash_lets_nobody_in(database: Database) -> None:
    create_staff(database, "t", "ada", "correct horse", "agent")
    with database.session() as session:
        row = find_staff(database, "ada")
        assert row is not None
        row.password = "plain"
        session.merge(row)
    assert check_password(database, "ada", "plain") is None


def test_accounts_are_one_to_a_name(database: Database) -> None:
    create_staff(database, "t", "ada", "correct horse", "agent")
    with pytest.raises(Conflict, match="ada"):
        create_staff(database, "t", "ada", "another one", "admin")
    with pytest.raises(RequestRefused, match="reserved"):
        create_staff(database, "t", "api", "correct horse", "admin")
    with pytest.raises(RequestRefused, match="at least 10"):
        create_staff(database, "t", "bob", "short", "agent")


def test_the_last_administrator_stays(database: Database) -> None:
    create_staff(database, "t", "ada", "correct horse", "admin")
    create_staff(database, "t", "bob", "correct horse", "agent")
    with pytest.raises(Conflict, match="last administrator"):
        delete_staff(database, "t", "ada")
    create_staff(database, "t", "eve", "correct horse", "admin")
    delete_staff(database, "t", "ada")
    assert [row.username for row in list_staff(database)] == ["bob", "eve"]
    with pytest.raises(NotFound):
        delete_staff(database, "t", "ada")
