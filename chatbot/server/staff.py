"""Staff accounts. Passwords are argon2id hashes (RFC 9106, argon2-cffi's defaults)."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import func, select

from chatbot.errors import Conflict, NotFound, RequestRefused, StorageFull
from chatbot.record.audit import record
from chatbot.record.clock import now_ms
from chatbot.record.database import Database
from chatbot.record.tables import Staff

Role = Literal["agent", "reviewer", "admin"]
ROLES: tuple[Role, ...] = ("agent", "reviewer", "admin")  # each may what those before it may
FIRST_ADMIN = "admin"
PASSWORD_FILE = "admin-password"
SHORTEST_PASSWORD = 10
RESERVED = ("api", "frontdesk", "playground")  # names of actors that are no person


def ensure_admin(database: Database, data_dir: Path) -> None:
    """On a record without staff, create ``admin`` with a random password and write the password
    to ``data_dir/admin-password`` (mode 0600).

    Raises:
        StorageFull: the file cannot be written; no account is made then.
    """
    with database.exclusive_session("staff") as session:
        if session.scalar(select(func.count()).select_from(Staff)):
            return
        password = secrets.token_urlsafe(15)
        _write_private(data_dir / PASSWORD_FILE, password + "\n")
        session.add(
            Staff(username=FIRST_ADMIN, password=_hash(password), role="admin", created_at=now_ms())
        )
        record(session, "frontdesk", "staff.create", FIRST_ADMIN, reason="first start")


def create_staff(database: Database, actor: str, username: str, password: str, role: Role) -> Staff:
    """Add an account.

    Raises:
        RequestRefused: a reserved name, or a password shorter than ten characters.
        Conflict: the name is taken.
    """
    if username in RESERVED:
        raise RequestRefused(f"the name {username} is reserved")
    if len(password) < SHORTEST_PASSWORD:
        raise RequestRefused(f"the password needs at least {SHORTEST_PASSWORD} characters")
    hashed = _hash(password)
    with database.exclusive_session("staff") as session:
        if session.get(Staff, username) is not None:
            raise Conflict(f"there is an account {username} already")
        row = Staff(username=username, password=hashed, role=role, created_at=now_ms())
        session.add(row)
        record(session, actor, "staff.create", username, data={"role": role})
    return row


def delete_staff(database: Database, actor: str, username: str) -> None:
    """Remove an account; its logins end with it.

    Raises:
        NotFound
        Conflict: it is the last administrator.
    """
    with database.exclusive_session("staff") as session:
        row = session.get(Staff, username)
        if row is None:
            raise NotFound(f"there is no account {username}")
        admins = session.scalars(select(Staff.username).where(Staff.role == "admin")).all()
        if admins == [username]:
            raise Conflict(f"{username} is the last administrator: create another one first")
        session.delete(row)
        record(session, actor, "staff.delete", username)


def list_staff(database: Database) -> Sequence[Staff]:
    with database.session() as session:
        return session.scalars(select(Staff).order_by(Staff.username)).all()


def find_staff(database: Database, username: str) -> Staff | None:
    with database.session() as session:
        return session.get(Staff, username)


def check_password(database: Database, username: str, password: str) -> Staff | None:
    """The account when the password is right, else None. An unknown name costs the same time as a
    wrong password, so that names cannot be found out."""
    row = find_staff(database, username)
    try:
        PasswordHasher().verify(row.password if row else _unknown(), password)
    except (VerificationError, InvalidHashError):
        return None
    return row


def _hash(password: str) -> str:
    return PasswordHasher().hash(password)


def _unknown() -> str:
    """A hash of no password, with the parameters of real ones."""
    hasher = PasswordHasher()
    salt, digest = "A" * 22, "A" * 43
    return (
        f"$argon2id$v=19$m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}"
        f"${salt}${digest}"
    )


def _write_private(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        draft.replace(path)
    except OSError as error:
        raise StorageFull(f"{path} cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
