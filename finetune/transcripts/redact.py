"""Personal data out of dialogues (``chatbot/redaction.py`` finds it), and which of it is the
business's own and stays."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from chatbot.prompt import ChatMessage
from chatbot.redaction import find, normal_value, redact
from finetune.transcripts.model import Dialogue


def redact_dialogue(dialogue: Dialogue, keep: Iterable[str] = ()) -> tuple[Dialogue, Counter[str]]:
    """The dialogue with every message redacted, and the counts by kind."""
    kept, counts = frozenset(keep), Counter[str]()
    messages = []
    for message in dialogue.messages:
        content, found = redact(message["content"], kept)
        counts += found
        changed: ChatMessage = {**message, "content": content}
        messages.append(changed)
    return (replace(dialogue, messages=tuple(messages)) if counts else dialogue), counts


def business_contacts(dialogues: Iterable[Dialogue], at_least: int = 3) -> frozenset[str]:
    """Contact data that is the business's own: agents (or the system message) gave it, before the
    visitor did, in at least ``at_least`` dialogues. Redacting the hotline would teach the bot to
    say "call [PHONE]". Cards and account numbers are never taken for contact data."""
    seen: Counter[str] = Counter()
    for dialogue in dialogues:
        seen.update(_volunteered(dialogue))
    return frozenset(value for value, count in seen.items() if count >= at_least)


def _volunteered(dialogue: Dialogue) -> set[str]:
    by_visitor: set[str] = set()
    by_agent: set[str] = set()
    for message in dialogue.messages:
        text = message["content"]
        values = {
            normal_value(text[f.start : f.end])
            for f in find(text)
            if f.kind in ("EMAIL", "PHONE", "URL", "IP")
        }
        if message["role"] in ("assistant", "system"):
            by_agent |= values - by_visitor
        else:  # a look-up's result holds the visitor's record
            by_visitor |= values
    return by_agent
