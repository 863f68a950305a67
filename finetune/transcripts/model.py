"""The canonical dialogue, and the line that could not become one.

A canonical line is the OpenAI chat fine-tuning shape:
``{"messages": [{"role", "content", "weight"?}, ...], "meta": {...}}`` with the roles system, user,
assistant and tool; ``weight`` 0 or 1 on an assistant message (default 1).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from chatbot.prompt import ChatMessage, Role

ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
MAX_MESSAGE_CHARS = 100_000
MAX_LINE_BYTES = 16 * 1024 * 1024


class Reason(StrEnum):
    """Why a line was rejected. The values are stable: rejects files and reports hold them."""

    MALFORMED_JSON = "malformed_json"
    INVALID_UTF8 = "invalid_utf8"
    LINE_TOO_LONG = "line_too_long"
    DAMAGED_FILE = "damaged_file"
    NOT_A_DIALOGUE = "not_a_dialogue"
    UNKNOWN_ROLE = "unknown_role"
    BAD_CONTENT = "bad_content"
    BAD_WEIGHT = "bad_weight"
    BAD_ROW = "bad_row"
    MESSAGE_TOO_LONG = "message_too_long"
    NO_AGENT_TURN = "no_agent_turn"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line (or row) that was left out: its number from 1, why, and the particulars."""

    line: int
    reason: Reason
    detail: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason} ({self.detail})"


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One conversation. ``line`` is where it stood in its file, 0 when it came from elsewhere."""

    messages: tuple[ChatMessage, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    line: int = 0

    @property
    def agent_turns(self) -> int:
        return sum(message["role"] == "assistant" for message in self.messages)

    @property
    def learns(self) -> bool:
        """Whether training would learn anything from it: an agent turn of weight 1."""
        return any(m["role"] == "assistant" and m.get("weight", 1) for m in self.messages)


class DialogueError(Exception):
    """A dialogue that cannot be used; becomes :class:`Rejected` with the line's number."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def canonical_line(dialogue: Dialogue) -> str:
    """One JSON line, without the line break. Equal dialogues give equal lines."""
    return json.dumps(
        {"messages": list(dialogue.messages), "meta": dict(dialogue.meta)},
        ensure_ascii=False,
        sort_keys=True,
        separators=(",", ":"),
    )


def make_message(role: str, content: object, weight: object = None, where: str = "") -> ChatMessage:
    """A checked message; ``where`` names it in errors.

    Raises:
        DialogueError: unknown role, content that is not text, too long, weight not 0 or 1.
    """
    if role not in ROLES:
        raise DialogueError(
            Reason.UNKNOWN_ROLE, f"{where}: role {role[:40]!r} is none of {', '.join(ROLES)}"
        )
    if not isinstance(content, str):
        kind = type(content).__name__
        raise DialogueError(Reason.BAD_CONTENT, f"{where}: content is {kind}, not text")
    if len(content) > MAX_MESSAGE_CHARS:
        raise DialogueError(
            Reason.MESSAGE_TOO_LONG,
            f"{where}: {len(content):,} characters, at most {MAX_MESSAGE_CHARS:,} are read",
        )
    message = ChatMessage(role=role, content=content.strip())
    if weight is not None:
        if weight not in (0, 1) or isinstance(weight, float):
            raise DialogueError(Reason.BAD_WEIGHT, f"{where}: weight {weight!r} is not 0 or 1")
        message["weight"] = 1 if weight else 0
    return message


def make_dialogue(
    messages: Iterable[ChatMessage], meta: Mapping[str, Any] | None = None, line: int = 0
) -> Dialogue:
    """A dialogue without its empty messages; indices in ``meta.agent_turns`` are kept right.

    Raises:
        DialogueError: no message of an agent in it.
    """
    listed = list(messages)
    kept = [index for index, message in enumerate(listed) if message["content"]]
    moved = {old: new for new, old in enumerate(kept)}
    dialogue = Dialogue(tuple(listed[i] for i in kept), _remap(meta or {}, moved), line)
    if not dialogue.agent_turns:
        raise DialogueError(
            Reason.NO_AGENT_TURN,
            f"{len(kept)} messages, none by an agent: there is nothing to learn from it",
        )
    return dialogue


def agent_kinds(dialogue: Dialogue) -> dict[int, str]:
    """Message index -> "template" or "custom", where the data says which is which."""
    turns = dialogue.meta.get("agent_turns")
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        return {}
    return {
        turn["i"]: turn["kind"]
        for turn in turns
        if isinstance(turn, Mapping)
        and isinstance(turn.get("i"), int)
        and turn.get("kind") in ("template", "custom")
    }


def _remap(meta: Mapping[str, Any], moved: dict[int, int]) -> dict[str, Any]:
    """``meta`` with the message indices of ``agent_turns`` as they are after empty ones went."""
    turns = meta.get("agent_turns")
    if not isinstance(turns, list) or all(old == new for old, new in moved.items()):
        return dict(meta)
    kept = [
        {**turn, "i": moved[turn["i"]]}
        for turn in turns
        if isinstance(turn, dict) and turn.get("i") in moved
    ]
    return {**meta, "agent_turns": kept}
