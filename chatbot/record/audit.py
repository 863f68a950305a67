"""Who did what, when and why. Written in the transaction of the deed, so neither is without the
other."""

from typing import Any

from sqlalchemy.orm import Session

from chatbot.record.clock import now_ms
from chatbot.record.tables import Audit


def record(
    session: Session,
    actor: str,
    action: str,
    subject: str = "",
    *,
    reason: str = "",
    data: dict[str, Any] | None = None,
) -> None:
    """Add an audit row, e.g. ``record(session, "ada", "version.promote", "v-3", reason="...")``.
    ``data`` never holds a password or a secret."""
    session.add(
        Audit(
            actor=actor, action=action, subject=subject, reason=reason, data=data or {}, at=now_ms()
        )
    )
