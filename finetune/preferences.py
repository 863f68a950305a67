"""What agents did with drafts, as pairs for preference training (DPO, arXiv 2305.18290; the
"conversational prompt" format of trl).

An agent who edits a draft says: rather this than that. So does one who turns a draft down and
answers with other words, or sends one draft of three that were shown. Each pair keeps its kind, so
that whoever trains may weigh them: an edit says more than a choice.
"""

from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import select

from chatbot.conversation.archive import Archive
from chatbot.conversation.events import ConversationId, Event
from chatbot.conversation.transcript import conversation_messages
from chatbot.prompt import ChatMessage
from chatbot.record.database import Database
from chatbot.record.tables import Conversation, EventRow
from chatbot.redaction import redact

KINDS = ("edited", "rejected", "passed_over")


def preference_pairs(
    database: Database, system_prompt_of: Callable[[str], str]
) -> Iterator[dict[str, Any]]:
    """``{"prompt": [messages], "chosen": [message], "rejected": [message], "meta": {conversation,
    kind, version, source, confidence}}``, the oldest conversation first, personal data redacted.
    Excluded conversations are left out.

    Raises:
        StoreUnavailable
    """
    archive = Archive(database)
    for name in _with_drafts(database):
        loaded = archive.load(ConversationId(name))
        if loaded is None:
            continue  # erased since
        row, events = loaded
        prompt = system_prompt_of(row.site)
        for chosen, draft, kind, answer in _preferred(events):
            before = [event for event in events if event.offset < answer.offset]
            yield _pair(name, conversation_messages(before, prompt), chosen, draft, kind, answer)


def _with_drafts(database: Database) -> list[str]:
    shown = select(EventRow.conversation_id).where(
        EventRow.type.in_(("suggestions.shown", "suggestion.rejected", "suggestion.accepted"))
    )
    sent = select(EventRow.conversation_id).where(
        EventRow.type == "message.created",
        EventRow.data["suggestion"]["suggestions_id"].as_string().is_not(None),
    )
    wanted = (
        select(Conversation.id)
        .where(~Conversation.excluded, Conversation.id.in_(shown.union(sent)))
        .order_by(Conversation.started_at, Conversation.id)
    )
    with database.session() as session:
        return list(session.scalars(wanted))


def _preferred(events: list[Event]) -> Iterator[tuple[str, dict[str, Any], str, Event]]:
    """(what was sent, the draft that it was preferred to, how, the agent's answer). In a call, what
    the agent took from a draft is the answer; what was then spoken says it again."""
    taken = {event.data["upto"] for event in events if event.type == "suggestion.accepted"}
    for answer in events:
        if not _is_answer(answer):
            continue
        upto = _question(events, answer)
        if answer.type == "message.created" and upto in taken:
            continue
        text = str(answer.data["text"])
        seen = {text.strip()}
        for kind, draft in _beaten(events, answer, upto):
            if draft["text"].strip() not in seen:
                seen.add(draft["text"].strip())
                yield text, draft, kind, answer


def _is_answer(event: Event) -> bool:
    by_agent = event.type == "message.created" and event.data["role"] == "agent"
    return by_agent or event.type == "suggestion.accepted"


def _question(events: list[Event], answer: Event) -> int:
    """Offset of the visitor's message that the answer was given to; 0 when there is none."""
    if answer.type == "suggestion.accepted":
        return int(answer.data["upto"])
    asked = [
        event.offset
        for event in events
        if event.type == "message.created"
        and event.data["role"] == "visitor"
        and event.offset < answer.offset
    ]
    return asked[-1] if asked else 0


def _beaten(events: list[Event], answer: Event, upto: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Drafts for the same question that were seen and not sent, the strongest sign first."""
    accepted = answer.type == "suggestion.accepted"
    began_as = answer.data if accepted else answer.data.get("suggestion")
    if began_as is not None:
        yield "edited", began_as["draft"]
    before = [
        event for event in events if event.offset < answer.offset and event.data.get("upto") == upto
    ]
    for event in before:
        if event.type == "suggestion.rejected":
            yield "rejected", event.data["draft"]
    if began_as is not None:  # own words may say anything else; a choice among drafts is a choice
        for event in before:
            if event.type == "suggestions.shown":
                for draft in event.data["drafts"]:
                    yield "passed_over", draft


def _pair(
    name: str,
    prompt: list[ChatMessage],
    chosen: str,
    draft: dict[str, Any],
    kind: str,
    answer: Event,
) -> dict[str, Any]:
    return {
        "prompt": [_clean(message["role"], message["content"]) for message in prompt],
        "chosen": [_clean("assistant", chosen)],
        "rejected": [_clean("assistant", draft["text"])],
        "meta": {
            "conversation": name,
            "offset": answer.offset,
            "kind": kind,
            "source": draft["source"],
            "origin": draft["origin"],
            "confidence": draft["confidence"],
        },
    }


def _clean(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": redact(text)[0]}
