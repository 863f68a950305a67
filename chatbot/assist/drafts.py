"""Drafts for an agent: values, and how drafts of the model and of past replies are ranked. Pure.

A draft set is made for one question: ``upto`` is the offset of the visitor's message that it
answers. When the visitor has written again, or somebody has answered, it is worth nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chatbot.assist.retrieval import Match

Source = Literal["model", "past"]
MOST = 3
# The share of votes at which a past reply stands level with the model's own; see rank()
MODEL_SHARE = 0.45


@dataclass(frozen=True, slots=True)
class Draft:
    """One suggestion. ``confidence`` 0..1: of the model, the mean probability of its words; of a
    past reply, its share of the votes. ``origin``: a model version, or where it was said."""

    id: str
    text: str
    source: Source
    confidence: float
    origin: str
    agreed: bool = False  # the model and a past reply say the same

    def to_wire(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "text": self.text,
            "source": self.source,
            "confidence": round(self.confidence, 3),
            "origin": self.origin,
            "agreed": self.agreed,
        }


def rank(model: Sequence[Draft], matches: Iterable[Match], most: int = MOST) -> list[Draft]:
    """The best ``most`` drafts. A reply that model and past agree on stands first. The model's
    own counts like a past reply with ``MODEL_SHARE`` of the votes, times its confidence: where
    the past is sure it leads, where it wavers the model does."""
    past = [
        Draft(f"p{number}", match.reply, "past", match.share, match.source)
        for number, match in enumerate(matches)
    ]
    own = {draft.text.strip(): draft for draft in model if draft.text.strip()}
    scored: list[tuple[float, Draft]] = []
    for draft in past:
        same = own.pop(draft.text, None)
        if same is None:
            scored.append((draft.confidence, draft))
        else:
            joined = 1 - (1 - draft.confidence) * (1 - same.confidence)
            scored.append((1 + joined, _agreed(same, joined)))
    scored += [(MODEL_SHARE * draft.confidence, draft) for draft in own.values()]
    scored.sort(key=lambda item: item[0], reverse=True)
    return [draft for _, draft in scored[:most]]


def _agreed(draft: Draft, confidence: float) -> Draft:
    return Draft(draft.id, draft.text.strip(), "model", confidence, draft.origin, True)
