"""Reader of the canonical form: OpenAI chat JSON lines, as exported by many tools."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chatbot.prompt import ChatMessage
from finetune.transcripts.files import json_records
from finetune.transcripts.model import (
    Dialogue,
    DialogueError,
    Reason,
    Rejected,
    make_dialogue,
    make_message,
)

# roles that OpenAI renamed or retired
ROLE_NAMES = {"developer": "system", "function": "tool"}


def read_openai(path: Path) -> Iterator[Dialogue | Rejected]:
    """Dialogues of a JSON-lines file (or JSON array) of ``{"messages": [...], "meta"?: {...}}``."""
    for record in json_records(path):
        if isinstance(record, Rejected):
            yield record
            continue
        try:
            yield dialogue_from(record.value, record.line)
        except DialogueError as error:
            yield Rejected(record.line, error.reason, error.detail)


def dialogue_from(value: object, line: int = 0) -> Dialogue:
    """A dialogue from a decoded canonical line.

    Raises:
        DialogueError: names what is wrong with which message.
    """
    messages = value.get("messages") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(messages, list) or not messages:
        raise DialogueError(Reason.NOT_A_DIALOGUE, 'no list "messages" with at least one message')
    turns = [turn for index, item in enumerate(messages) for turn in _turns(item, index)]
    meta = value.get("meta")
    known = dict(meta) if isinstance(meta, Mapping) else {}
    others = {key: item for key, item in value.items() if key not in ("messages", "meta")}
    return make_dialogue(turns, {**others, **known}, line)


def _turns(item: object, index: int) -> Iterator[ChatMessage]:
    """The message; a call of a tool beside (or instead of) its content becomes a tool message."""
    where = f"message {index + 1}"
    if not isinstance(item, Mapping) or not isinstance(item.get("role"), str):
        raise DialogueError(Reason.NOT_A_DIALOGUE, f'{where}: not an object with a "role"')
    role: str = item["role"]
    role = ROLE_NAMES.get(role, role)
    calls = item.get("tool_calls") or ([item["function_call"]] if item.get("function_call") else [])
    content = item.get("content")
    if isinstance(content, list):
        content = _join_parts(content, where)
    if content is None and calls:
        content = ""
    yield make_message(role, content, item.get("weight"), where)
    for call in calls:
        yield make_message("tool", json.dumps(_call(call), ensure_ascii=False), None, where)


def _call(call: Any) -> Any:
    return call.get("function", call) if isinstance(call, Mapping) else call


def _join_parts(parts: list[object], where: str) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, Mapping) or part.get("type") not in ("text", "refusal"):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise DialogueError(Reason.BAD_CONTENT, f"{where}: a part is {kind}, not text")
        texts.append(str(part.get("text", part.get("refusal", ""))))
    return "\n".join(texts)
