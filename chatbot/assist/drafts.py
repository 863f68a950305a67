"""Drafts for an agent: values, and how drafts of the model and of past replies are ranked. Pure.

A draft set is made for one question: ``upto`` is the offset of the visitor's message that it
answers. When the visitor has written again, or somebody has answered, it is worth nothing.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from chatbot.assist.retrieval import Match

Source = Literal["model", "past"]
MOST = 3
ALIKE = 0.7  # share of their words (Jaccard) from which on two drafts say the same thing
_WORD = re.compile(r"\w+")


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


@dataclass(frozen=True, slots=True)
class Written:
    """What the model would say. ``probability`` 0..1: of this very reply, the product of its
    tokens' probabilities."""

    draft: Draft
    probability: float


def rank(own: Written | None, matches: Iterable[Match], most: int = MOST) -> list[Draft]:
    """The best ``most`` drafts.

    How good a reply is, is the mean of two opinions on how probable it is (a linear opinion pool,
    Stone 1961, doi 10.1214/aoms/1177704873): its share of the votes of the past, and the model's.
    The model is asked for the reply that it wrote itself; of others it is taken to say 0. So a
    reply that both come to leads, the past leads where it is sure, and the model where it is.

    Wordings of one thing are one draft: their weights are added up, and the likeliest is shown.
    """
    text = own.draft.text.strip() if own else ""
    scored: list[tuple[float, Draft]] = []
    for number, match in enumerate(matches):
        draft = Draft(f"p{number}", match.reply, "past", match.share, match.source)
        if own and match.reply == text:
            joined = 1 - (1 - match.share) * (1 - own.draft.confidence)
            scored.append((match.share + own.probability, _agreed(own.draft, joined)))
            own = None
        else:
            scored.append((match.share, draft))
    if own and text:
        scored.append((own.probability, own.draft))
    scored.sort(key=lambda item: item[0], reverse=True)
    return [draft for _, draft in _joined(scored)[:most]]


def _joined(scored: Iterable[tuple[float, Draft]]) -> list[tuple[float, Draft]]:
    """Drafts that are alike joined into the first of them, with their weights together."""
    groups: list[tuple[frozenset[str], list[float], Draft]] = []
    for weight, draft in scored:
        words = frozenset(_WORD.findall(draft.text.lower()))
        for known, weights, _ in groups:
            if len(words & known) >= ALIKE * len(words | known):
                weights.append(weight)
                break
        else:
            groups.append((words, [weight], draft))
    joined = [(sum(weights), draft) for _, weights, draft in groups]
    return sorted(joined, key=lambda item: item[0], reverse=True)


def _agreed(draft: Draft, confidence: float) -> Draft:
    return Draft(draft.id, draft.text.strip(), "model", confidence, draft.origin, True)
