"""How events and heads are written in the store."""

import json
from collections.abc import Mapping
from typing import Any, Literal, cast

from chatbot.conversation.events import ConversationId, Event, Head, Status, VisitorId


def to_json(data: Mapping[str, Any]) -> str:
    """Compact JSON; text stays as it is but for what JSON must escape."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def stored_event(event: Event) -> str:
    """The JSON under which the log keeps an event; its offset is the entry's id."""
    return to_json({"type": event.type, "at": event.at, "data": event.data})


def event_of(entry_id: str, encoded: str) -> Event:
    value = json.loads(encoded)
    return Event(int(entry_id.partition("-")[0]), value["type"], value["at"], value["data"])


def head_of_pairs(flat: list[str]) -> Head:
    return head_of(dict(zip(flat[::2], flat[1::2], strict=True)))


def head_of(fields: Mapping[str, str]) -> Head:
    return Head(
        conversation_id=ConversationId(fields["id"]),
        epoch=fields["epoch"],
        offset=int(fields["offset"]),
        status=cast(Status, fields["status"]),
        site=fields["site"],
        visitor=VisitorId(fields["visitor"]),
        agent=fields["agent"],
        kind=cast(Literal["chat", "playground"], fields["kind"]),
        pinned_version=fields["pinned"],
        created_at=int(fields["created"]),
        updated_at=int(fields["updated"]),
        recorded=int(fields["recorded"]),
        asked=int(fields["asked"]),
        answered=int(fields["answered"]),
    )
