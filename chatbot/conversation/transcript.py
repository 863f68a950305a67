"""A conversation's log as the chat messages that a model reads (design idea 4, first half).

What the visitor saw counts, and nothing else: messages, finished replies, and what was shown of
replies that were stopped or cut by a hand-over. Left out are notes, failed replies (their text was
taken back), ratings and every change of status: a model that is told "a person has taken over" goes
on believing it after the conversation came back.
"""

from collections.abc import Iterable

from chatbot.conversation.events import Event
from chatbot.prompt import ChatMessage

# client_message_id of the note that holds a playground's own system prompt. Ids that clients send
# have no space (protocol.Id), so no agent's note is ever taken for it.
SYSTEM_PROMPT_NOTE = "system prompt"


def conversation_messages(events: Iterable[Event], system_prompt: str) -> list[ChatMessage]:
    """Chat messages of a log: visitor as user; bot and agents as assistant. A system message
    comes first unless ``system_prompt`` is empty; a playground may have its own.

    A reply stands where it was asked for, after the messages it had read (``upto``), also when the
    visitor wrote on while it was being written: so the last message is what is to be answered.
    What was said in a call and came late stands where it was said.
    """
    events = list(events)
    for event in events:
        own = event.data.get("client_message_id") == SYSTEM_PROMPT_NOTE
        if own and event.type == "note.created":
            system_prompt = str(event.data["text"])
    messages = [message for _, message in placed_messages(events)]
    if system_prompt:
        messages.insert(0, {"role": "system", "content": system_prompt})
    return messages


def placed_messages(events: Iterable[Event]) -> list[tuple[Event, ChatMessage]]:
    """The messages in the order of :func:`conversation_messages`, each with its event."""
    found = [(event, _message(event)) for event in events]
    placed = [(event, message) for event, message in found if message is not None]
    placed.sort(key=lambda item: _place(item[0]))
    return placed


def _message(event: Event) -> ChatMessage | None:
    text = str(event.data.get("text", ""))
    if not text.strip():
        return None
    if event.type == "message.created":
        visitor = event.data["role"] == "visitor"
        return {"role": "user" if visitor else "assistant", "content": text}
    if event.type == "reply.completed":
        return {"role": "assistant", "content": text}
    return None


def _place(event: Event) -> tuple[int, int]:
    if event.type == "reply.completed":
        return int(event.data.get("upto", event.offset)), 1
    if "late" in event.data:
        return int(event.data["late"]), -1
    return event.offset, 0
