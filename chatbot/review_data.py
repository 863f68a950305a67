"""Reviewed conversations as training dialogues.

Staff say of single replies "good", "bad", or "it should have been this". What follows a wrong
reply was said in reaction to it, so a correction is never followed by what came after it. Each
reviewed conversation gives

- one dialogue for each correction: the conversation as it was up to the reply, and the correction
  in its place, which alone is learned (``weight`` 1);
- one dialogue of the whole conversation as it was, in which replies marked good and agents' own
  words are learned; every other reply is context (``weight`` 0), a corrected one too.

So each text is learned once, after exactly the words that a visitor and the bot had said before.
A good reply that was cut (stopped, handed over, too long) is context only: learning it would teach
to stop in mid-sentence.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqlalchemy import or_, select

from chatbot.conversation.archive import Archive
from chatbot.conversation.events import ConversationId, Event
from chatbot.conversation.transcript import placed_messages
from chatbot.prompt import ChatMessage
from chatbot.record.database import Database
from chatbot.record.tables import Conversation, Review, Site

Placed = list[tuple[Event, ChatMessage]]
SOURCE = "review"


def conversation_of(meta: Mapping[str, Any]) -> str:
    """The conversation that a dialogue with this ``meta`` was made of; "" for any other."""
    return str(meta.get("id", "")).partition("#")[0] if meta.get("source") == SOURCE else ""


def site_prompts(database: Database, default: str) -> Callable[[str], str]:
    """The system prompt of a site by its name, as the worker uses it."""
    with database.session() as session:
        own = {row.name: row.system_prompt for row in session.scalars(select(Site))}
    return lambda name: own.get(name) or default


def reviewed_dialogues(
    database: Database, system_prompt_of: Callable[[str], str]
) -> Iterator[dict[str, Any]]:
    """Canonical dialogues (``{"messages": [{role, content, weight}...], "meta": {...}}``; weight on
    assistant messages) of reviewed conversations in which there is something to learn, the oldest
    first. Excluded conversations are left out; playgrounds are never recorded.

    Args:
        system_prompt_of: the system prompt of a site, by its name.

    Raises:
        StoreUnavailable
    """
    archive = Archive(database)
    for name in _reviewed(database):
        loaded = archive.load(ConversationId(name))
        if loaded is None:
            continue  # erased since
        row, events = loaded
        yield from _dialogues(
            row, placed_messages(events), _reviews(database, name), system_prompt_of
        )


def excluded_conversations(database: Database) -> int:
    """How many reviewed conversations are kept out of training."""
    with database.session() as session:
        wanted = select(Review.conversation_id).join(
            Conversation, Conversation.id == Review.conversation_id
        )
        return len(set(session.scalars(wanted.where(Conversation.excluded))))


def _reviewed(database: Database) -> list[str]:
    wanted = (
        select(Conversation.id)
        .join(Review, Review.conversation_id == Conversation.id)
        .where(
            ~Conversation.excluded, or_(Review.verdict.is_not(None), Review.correction.is_not(None))
        )
        .distinct()
        .order_by(Conversation.started_at, Conversation.id)
        .add_columns(Conversation.started_at)  # PostgreSQL: what orders a DISTINCT is in it
    )
    with database.session() as session:
        return [name for name, _ in session.execute(wanted)]


def _reviews(database: Database, name: str) -> dict[int, Review]:
    with database.session() as session:
        rows = session.scalars(select(Review).where(Review.conversation_id == name)).all()
    return {row.offset: row for row in rows}


def _dialogues(
    row: Conversation,
    placed: Placed,
    reviews: dict[int, Review],
    system_prompt_of: Callable[[str], str],
) -> Iterator[dict[str, Any]]:
    prompt = system_prompt_of(row.site)
    head = [{"role": "system", "content": prompt}] if prompt else []
    for at, (event, _) in enumerate(placed):
        correction = _correction(event, reviews)
        if correction is not None:
            context = [_message(message, 0) for _, message in placed[:at]]
            wanted = {"role": "assistant", "content": correction, "weight": 1}
            yield _dialogue(row, f"{row.id}#{event.offset}", [*head, *context, wanted], True)
    weights = [_weight(event, message, reviews) for event, message in placed]
    if any(weights):
        last = max(at for at, weight in enumerate(weights) if weight)
        body = [
            _message(message, weight)
            for (_, message), weight in zip(placed[: last + 1], weights, strict=False)
        ]
        yield _dialogue(row, row.id, [*head, *body], False)


def _dialogue(
    row: Conversation, name: str, messages: list[dict[str, Any]], correction: bool
) -> dict[str, Any]:
    meta = {"id": name, "source": SOURCE, "site": row.site, "correction": correction}
    return {"messages": messages, "meta": meta}


def _message(message: ChatMessage, weight: int) -> dict[str, Any]:
    plain = {"role": message["role"], "content": message["content"]}
    return {**plain, "weight": weight} if message["role"] == "assistant" else plain


def _correction(event: Event, reviews: dict[int, Review]) -> str | None:
    review = reviews.get(event.offset)
    if event.type != "reply.completed" or review is None:
        return None
    return (review.correction or "").strip() or None


def _weight(event: Event, message: ChatMessage, reviews: dict[int, Review]) -> int:
    if message["role"] != "assistant":
        return 0
    if event.type == "message.created":
        return 1  # an agent's own words
    if _correction(event, reviews) is not None or event.data.get("finish_reason") != "end":
        return 0
    review = reviews.get(event.offset)
    return int(review is not None and review.verdict == "good")
