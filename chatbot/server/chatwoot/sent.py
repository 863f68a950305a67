"""What went to Chatwoot, as the log says it."""

from chatbot.conversation.events import ConversationId, Event
from chatbot.services import Services


def forwarded(events: list[Event]) -> set[int]:
    """Offsets of what went to Chatwoot."""
    return {int(event.data["upto"]) for event in events if event.type == "reply.forwarded"}


async def note_forwarded(
    services: Services, name: ConversationId, offset: int, outcome: str
) -> None:
    """Note once what became of the event at ``offset``."""
    data = {"upto": offset, "outcome": outcome}
    await services.log.append_staff_event(name, "reply.forwarded", data, f"forwarded.{offset}")
