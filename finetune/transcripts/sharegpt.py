"""Reader of the ShareGPT shape: ``{"conversations": [{"from", "value"}, ...]}``."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from finetune.transcripts.files import json_records
from finetune.transcripts.model import (
    Dialogue,
    DialogueError,
    Reason,
    Rejected,
    make_dialogue,
    make_message,
)

ROLE_NAMES = {
    "human": "user",
    "user": "user",
    "customer": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "agent": "assistant",
    "model": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    # a call is written for a machine: it is context, never a reply to learn
    "function_call": "tool",
    "function_response": "tool",
}


def read_sharegpt(path: Path) -> Iterator[Dialogue | Rejected]:
    """Dialogues of a JSON-lines file or of one JSON array, streaming."""
    for record in json_records(path):
        if isinstance(record, Rejected):
            yield record
            continue
        try:
            yield _dialogue(record.value, record.line)
        except DialogueError as error:
            yield Rejected(record.line, error.reason, error.detail)


def _dialogue(value: object, line: int) -> Dialogue:
    turns = value.get("conversations") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(turns, list) or not turns:
        raise DialogueError(Reason.NOT_A_DIALOGUE, 'no list "conversations" with a message')
    messages = []
    if isinstance(value.get("system"), str):
        messages.append(make_message("system", value["system"], None, "system"))
    for index, turn in enumerate(turns):
        where = f"message {index + 1}"
        sender = turn.get("from") if isinstance(turn, Mapping) else None
        if not isinstance(turn, Mapping) or not isinstance(sender, str):
            raise DialogueError(Reason.NOT_A_DIALOGUE, f'{where}: not an object with "from"')
        role = ROLE_NAMES.get(sender.lower(), sender)
        messages.append(make_message(role, turn.get("value"), turn.get("weight"), where))
    meta = {k: v for k, v in value.items() if k not in ("conversations", "system")}
    return make_dialogue(messages, meta, line)
