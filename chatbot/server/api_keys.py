"""Keys of the OpenAI-compatible API and, with a site, of that site's calls. A key has 256 random
bits, so a fast hash of it may be kept (OWASP: slow hashes are for what people choose); it is shown
once, when it is made."""

import hashlib
import secrets
from collections.abc import Sequence

from sqlalchemy import select

from chatbot.errors import InputError, NotFound
from chatbot.record.audit import record
from chatbot.record.clock import now_ms
from chatbot.record.database import Database
from chatbot.record.tables import ApiKey, Site

PREFIX = "fd-"  # so that scanners of leaked secrets, and people, know what it is
HINT = len(PREFIX) + 6  # characters of a key that may be shown


def create_key(database: Database, actor: str, name: str, site: str = "") -> tuple[ApiKey, str]:
    """A new key's row, and the key itself, which cannot be had again. ``site``: whose calls it may
    also assist.

    Raises:
        InputError: there is no such site.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    row = ApiKey(
        id=f"key-{secrets.token_hex(6)}",
        name=name,
        digest=_digest(key),
        hint=key[:HINT],
        site=site,
        created_by=actor,
        created_at=now_ms(),
    )
    with database.session() as session:
        if site and session.get(Site, site) is None:
            raise InputError(f"there is no site {site!r}: create it in the console or by the API")
        session.add(row)
        record(session, actor, "key.create", row.id, data={"name": name, "site": site})
    return row, key


def revoke_key(database: Database, actor: str, key_id: str) -> None:
    """Let a key in no more, from the next request on. Again is no harm.

    Raises:
        NotFound
    """
    with database.exclusive_session("api-keys") as session:
        row = session.get(ApiKey, key_id)
        if row is None:
            raise NotFound(f"there is no key {key_id}")
        if row.revoked_at is None:
            row.revoked_at = now_ms()
            record(session, actor, "key.revoke", key_id, data={"name": row.name})


def list_keys(database: Database) -> Sequence[ApiKey]:
    """All of them, also revoked ones, the newest first."""
    with database.session() as session:
        query = select(ApiKey).order_by(ApiKey.created_at.desc(), ApiKey.id)
        return session.scalars(query).all()


def find_key(database: Database, key: str) -> ApiKey | None:
    """The row of a key that is in force. It is looked up by its digest: how long that takes says
    nothing of the keys that there are."""
    with database.session() as session:
        query = select(ApiKey).where(ApiKey.digest == _digest(key), ApiKey.revoked_at.is_(None))
        return session.scalars(query).first()


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
