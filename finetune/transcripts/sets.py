"""Equal dialogues, and which side of a split a dialogue is on. Both by hash, so stable."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Literal

from finetune.transcripts.model import Dialogue

Duplicate = Literal["exact", "normalised"]

_NOT_WORD = re.compile(r"[\W_]+")


def exact_key(dialogue: Dialogue) -> str:
    """sha256 over roles and contents. Weights and meta do not count."""
    return _digest((m["role"], m["content"]) for m in dialogue.messages)


def normal_key(dialogue: Dialogue) -> str:
    """As :func:`exact_key`, but deaf to case, punctuation and spacing, and to the system message
    (two exports of one dialogue often differ in it)."""
    return _digest(
        (m["role"], _NOT_WORD.sub(" ", m["content"].lower()).strip())
        for m in dialogue.messages
        if m["role"] != "system"
    )


def _digest(turns: object) -> str:
    digest = hashlib.sha256()
    for role, content in turns:  # type: ignore[attr-defined]
        digest.update(f"{role}\0{content}\0".encode())
    return digest.hexdigest()


@dataclass
class Seen:
    """Remembers dialogues by their keys: 64 hex digits each, whatever their length."""

    _exact: set[str] = field(default_factory=set)
    _normal: set[str] = field(default_factory=set)

    def add(self, dialogue: Dialogue) -> Duplicate | None:
        """Remember the dialogue. How it equals one remembered before, or None."""
        exact, normal = exact_key(dialogue), normal_key(dialogue)
        duplicate: Duplicate | None = None
        if exact in self._exact:
            duplicate = "exact"
        elif normal in self._normal:
            duplicate = "normalised"
        self._exact.add(exact)
        self._normal.add(normal)
        return duplicate

    def __contains__(self, dialogue: object) -> bool:
        return isinstance(dialogue, Dialogue) and normal_key(dialogue) in self._normal


def held_out(dialogue: Dialogue, share: float) -> bool:
    """Whether the dialogue belongs to the held-out ``share`` (0..1). Depends on its words alone:
    the same dialogue is on the same side in every export, also with another system message."""
    return int(normal_key(dialogue)[:12], 16) < share * 16**12
