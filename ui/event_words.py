"""What happened in a conversation besides what was said, in a line for people. Pure.

What only the machinery needs to know (drafts that were shown, copies that were sent on) has no
line, and neither has a type of event that this console does not know.
"""

from ui.answers import Event

WHO = {"visitor": "the visitor", "system": "Frontdesk", "frontdesk": "Frontdesk"}
CHANNELS = {"call": "A phone call", "chatwoot": "A conversation of Chatwoot"}


def line_of(event: Event) -> str:
    """ "" for what is not shown. The names and words of people in it are as they wrote them."""
    if event.type == "status.changed":
        return _status(event)
    if event.type == "tags.changed":
        return _tags(event)
    if event.type == "suggestion.accepted":
        return f"{_actor(event)} used a draft of the bot"
    if event.type == "channel.opened":
        channel = event.text_of("channel")
        return CHANNELS.get(channel, f"A conversation of {channel}")
    if event.type == "visitor.described":
        return _facts(event)
    return ""


def _status(event: Event) -> str:
    status, reason, actor = event.text_of("status"), event.text_of("reason"), _actor(event)
    agent = event.text_of("agent") or actor
    if status == "human" and reason == "transferred":
        return f"{actor} handed it to {agent}"
    if status == "human":
        return _because(f"{agent} took it over", reason, "claimed")
    if status == "bot" and reason == "released":
        return f"{actor} gave it back to the bot"
    if status == "closed" and reason == "idle":
        return "Closed, since nothing was written for long"
    if status == "closed":
        return _because(f"Closed by {actor}", reason, "closed")
    begins = {"waiting": "Waiting for a person", "bot": "With the bot again"}
    return _because(begins.get(status, f"Now {status}"), reason)


def _because(said: str, reason: str, *known: str) -> str:
    """With the reason, unless it says what was said already."""
    return said if reason in ("", *known) else f"{said}: {reason}"


def _tags(event: Event) -> str:
    tags = event.value_of("tags")
    if not isinstance(tags, list) or not tags:
        return f"{_actor(event)} took the tags off"
    return f"{_actor(event)} set the tags: {', '.join(map(str, tags))}"


def _facts(event: Event) -> str:
    facts = event.value_of("facts")
    if not isinstance(facts, dict) or not facts:
        return ""
    sure = "the site vouches for it" if event.text_of("source") == "identity" else "not checked"
    listed = ", ".join(f"{name} {value}" for name, value in facts.items())
    return f"About the visitor: {listed} ({sure})"


def _actor(event: Event) -> str:
    name = event.text_of("actor")
    return WHO.get(name, name) or "Somebody"
