"""Drafts from text that exists already, for speculative decoding (arXiv 2211.17192) without a
draft model: from the reply's own conversation (prompt lookup, arXiv 2304.04487 and transformers'
``prompt_lookup_num_tokens``) and from what replies of its scopes have in common. Torch-free.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Protocol

from chatbot.engine.interface import DraftCount
from chatbot.engine.torch.draft_policy import Chance, Draft, DraftPolicy
from chatbot.engine.torch.reply_index import LONGEST_MATCH, ReplyIndex
from chatbot.engine.torch.sequence import Sequence

OWN_PLACES = 16  # looked at for one pair of tokens, the latest ones


class OwnText:
    """Where each pair of tokens stands in a list of tokens that only grows."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, int], list[int]] = {}
        self._known = 1  # tokens before this place were read as the second of a pair

    def draft(self, tokens: Items[int], count: int) -> tuple[list[int], int]:
        """(at most ``count`` tokens that followed the longest match of the last ones, the latest
        such place winning; length of the match). A match that reaches the end goes on with what
        it drafts: a repetition."""
        for place in range(self._known, len(tokens) - 1):
            pair = (tokens[place - 1], tokens[place])
            self._after.setdefault(pair, []).append(place + 1)
        self._known = max(self._known, len(tokens) - 1)
        places = self._after.get((tokens[-2], tokens[-1]), []) if len(tokens) > 1 else []
        best, longest = 0, 0
        for place in reversed(places[-OWN_PLACES:]):
            length = _match(tokens, place)
            if length > longest:
                best, longest = place, length
        if not longest:
            return [], 0
        drafted: list[int] = []
        while len(drafted) < count:
            at = best + len(drafted)
            drafted.append(tokens[at] if at < len(tokens) else drafted[at - len(tokens)])
        return drafted, longest


def _match(tokens: Items[int], place: int) -> int:
    """How many tokens before ``place`` equal those at the end."""
    length, limit = 0, min(place, LONGEST_MATCH)
    while length < limit and tokens[place - 1 - length] == tokens[-1 - length]:
        length += 1
    return length


@dataclass(slots=True)
class DraftState:
    """What drafting knows of one reply."""

    own: OwnText = field(default_factory=OwnText)
    chance: Chance = field(default_factory=Chance)


class Drafter(Protocol):
    """What the scheduler asks of drafts."""

    def plan(self, sequences: Items[Sequence], rows: int) -> Mapping[Sequence, Draft]:
        """Drafts to verify in a step that chooses a token for these sequences and has ``rows``
        rows without drafts. No draft is longer than :func:`draft_room`, and none holds a token
        that ends its reply."""
        ...

    def verified(self, sequence: Sequence, draft: Draft, stood: int) -> None:
        """The first ``stood`` tokens of the draft were what the model chose."""
        ...


def draft_room(sequence: Sequence) -> int:
    """Draft tokens that a reply has room for: the token chosen after them must fit, too."""
    return sequence.max_tokens - sequence.generated - 1


class ReplyDrafter:
    """The :class:`Drafter` of an engine. Not thread-safe."""

    def __init__(self, most_tokens: int, policy: DraftPolicy | None = None) -> None:
        """``most_tokens``: longest draft."""
        self._most_tokens = most_tokens
        self.policy = policy or DraftPolicy()
        self.index = ReplyIndex()
        self._counts: dict[str, list[int]] = {"prompt": [0, 0], "replies": [0, 0]}

    @property
    def counts(self) -> tuple[DraftCount, ...]:
        return tuple(DraftCount(name, *pair) for name, pair in self._counts.items())

    def plan(self, sequences: Items[Sequence], rows: int) -> dict[Sequence, Draft]:
        if not sequences:
            return {}
        if self.policy.best_chance() < self.policy.least_chance(len(sequences), rows):
            self.policy.lengths([], len(sequences), rows)  # nothing is worth a look
            return {}
        found = [(sequence, self._draft(sequence)) for sequence in sequences]
        offers = [(sequence, draft) for sequence, draft in found if draft is not None]
        pairs = [(draft, _state(sequence).chance) for sequence, draft in offers]
        lengths = self.policy.lengths(pairs, len(sequences), rows)
        cut = (
            (sequence, draft.first(length))
            for (sequence, draft), length in zip(offers, lengths, strict=True)
        )
        return {sequence: draft for sequence, draft in cut if draft is not None}

    def _draft(self, sequence: Sequence) -> Draft | None:
        """The better of both sources, up to the token that would end the reply: that one comes
        by itself when what is before it stands."""
        count = min(self._most_tokens, draft_room(sequence))
        if count < 1:
            return None
        state = _state(sequence)
        own, own_match = state.own.draft(sequence.tokens, count)
        recent = sequence.tokens[max(len(sequence.prompt), len(sequence.tokens) - LONGEST_MATCH) :]
        taught, taught_match = self.index.draft(sequence.draft_scopes, recent, count)
        offers = [Draft(tuple(own), "prompt", own_match)] if own else []
        offers += [Draft(tuple(taught), "replies", taught_match)] if taught else []
        if not offers:
            return None
        best = max(offers, key=lambda draft: self.policy.chance(draft, state.chance))
        ends = (place for place, t in enumerate(best.tokens) if t in sequence.end_ids)
        return best.first(next(ends, len(best.tokens)))

    def verified(self, sequence: Sequence, draft: Draft, stood: int) -> None:
        self.policy.verified(draft, _state(sequence).chance, stood)
        count = self._counts[draft.source]
        count[0] += len(draft.tokens)
        count[1] += stood


def _state(sequence: Sequence) -> DraftState:
    if sequence.draft_state is None:
        sequence.draft_state = DraftState()
    return sequence.draft_state
