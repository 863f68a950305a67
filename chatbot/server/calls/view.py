"""A call as its agent sees it: one value, from the log, the partials and the board. Pure."""

from collections.abc import Sequence
from typing import Any

from chatbot.assist.board import DraftSet
from chatbot.assist.summary import summary_of
from chatbot.conversation.events import Event, Head, Partial
from chatbot.conversation.interface import Catchup

View = dict[str, Any]
# ``bot``: only in Chatwoot, where the bot may have a conversation
STATUS = {"human": "open", "waiting": "open", "bot": "bot", "closed": "closed"}


def call_view(catchup: Catchup, partials: Sequence[Partial], drafts: DraftSet | None) -> View:
    """What ``GET /v1/assist/sessions/{id}`` answers. ``catchup`` holds the whole log."""
    head = catchup.head
    return {
        "session_id": head.conversation_id,
        "site": head.site,
        **_opened(catchup.events),
        "status": STATUS[head.status],
        "agent": head.agent,
        "reason": _reason(catchup.events),
        "transcript": lines_of(catchup.events, partials),
        "summary": summary_of(catchup.events, catchup.live).to_wire(),
        "suggestions": open_set(head, drafts),
    }


def open_set(head: Head, drafts: DraftSet | None) -> View | None:
    """Drafts for the open question; others are withdrawn."""
    fresh = STATUS[head.status] == "open" and drafts is not None and drafts.upto == head.question
    return drafts.to_wire() if fresh and drafts is not None else None


def lines_of(events: Sequence[Event], partials: Sequence[Partial]) -> list[View]:
    """What was said, in the order of when it was said. ``speaker``: customer, agent or bot."""
    lines = [line for event in events if (line := _line(event)) is not None]
    lines += [
        {"id": p.id, "speaker": _speaker(p.speaker), "text": p.text, "at": p.at, "final": False}
        for p in partials
    ]
    return sorted(lines, key=lambda line: int(line["at"]))


def _line(event: Event) -> View | None:
    data = event.data
    if event.type == "message.created":
        name, speaker = data["client_message_id"], _speaker(data["role"])
    elif event.type == "reply.completed" and data["text"].strip():
        name, speaker = data["reply_id"], "bot"
    else:
        return None
    at = int(data.get("spoken_at", event.at))
    return {"id": name, "speaker": speaker, "text": data["text"], "at": at, "final": True}


def _speaker(role: str) -> str:
    return "customer" if role == "visitor" else role


def _opened(events: Sequence[Event]) -> View:
    opened = next((event.data for event in events if event.type == "channel.opened"), None)
    assert opened is not None  # the first event of every call
    return {
        "call_id": opened["external"].get("call_id"),
        "language": opened["language"],
        "attributes": opened["attributes"],
    }


def _reason(events: Sequence[Event]) -> str:
    """Why it is over; "" while it is not."""
    last = next((event for event in reversed(events) if event.type == "status.changed"), None)
    return str(last.data["reason"]) if last and last.data["status"] == "closed" else ""
