"""How many tokens to draft: as many as make the whole step faster per token, by measurement.

A step of ``rows`` rows takes ``seconds(rows)``, and without drafts gives one token for each reply
in it. A draft of ``k`` tokens adds ``k`` rows and, where each token stands with probability ``q``
if the one before it did, ``q + q^2 + ... + q^k`` tokens. So the draft tokens of all replies are put
in the order of their chances, and as many of them are taken as give the most tokens per second.
Where rows cost little (few replies: the step waits for memory) nearly every draft is taken; under
full load only the near certain ones are, or none.

Both numbers are measured while serving: the seconds for each number of rows, and ``q`` for each
source and length of match, and for each reply. Now and then a draft is tried although it does not
seem to pay, so that the numbers cannot stay wrong.
"""

import itertools
import math
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

PROBE_EVERY = 40  # steps without a draft before one is tried
LONGEST_KEY = 8  # longer matches are as good as this one
# before anything is measured: a step costs as much as this many rows before its first row
FIXED_ROWS = 12.0
PRIOR_CHANCE = 0.6
PRIOR_WEIGHT = 4.0  # tokens that the expectation counts for


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may come next, [1 or more], who proposed them, and on how long a match."""

    tokens: tuple[int, ...]
    source: str
    match: int

    def first(self, count: int) -> "Draft | None":
        """The first ``count`` tokens of it; None of none."""
        return Draft(self.tokens[:count], self.source, self.match) if count > 0 else None


@dataclass(slots=True)
class Chance:
    """Share of draft tokens that stood, of those lately verified."""

    stood: float = 0.0
    tried: float = 0.0

    def update(self, stood: int, tried: int, memory: float) -> None:
        """``memory``: weight, 0..1, of what was before."""
        self.stood = self.stood * memory + stood
        self.tried = self.tried * memory + tried

    def mean(self, prior: float) -> float:
        return (self.stood + PRIOR_WEIGHT * prior) / (self.tried + PRIOR_WEIGHT)


class StepCost:
    """Seconds of a step by its rows: moving averages at numbers of rows that grow by a fifth or
    more, straight lines between."""

    def __init__(self) -> None:
        self._points: dict[int, tuple[float, float]] = {}  # bucket -> (rows, seconds)
        self._curve: list[tuple[float, float]] = []

    def observe(self, rows: int, seconds: float) -> None:
        """A step of that many rows took that long. Falls are believed sooner than rises: what
        disturbs a machine only ever makes a step longer."""
        bucket = round(4 * math.log2(rows))
        known = self._points.get(bucket)
        if known is None:
            self._points[bucket] = (float(rows), seconds)
        else:
            pace = 0.3 if seconds < known[1] else 0.05
            change = min(seconds, 3 * known[1]) - known[1]
            mean_rows = known[0] + pace * (rows - known[0])
            self._points[bucket] = (mean_rows, known[1] + pace * change)
        self._curve = self._rising()

    def _rising(self) -> list[tuple[float, float]]:
        """The points by rows; none costs more than one of more rows. So what was disturbed, or the
        first of its kind, is not believed for long, though no other of as few rows may come."""
        curve: list[tuple[float, float]] = []
        for rows, seconds in sorted(self._points.values(), reverse=True):
            curve.append((rows, min(seconds, curve[-1][1]) if curve else seconds))
        return curve[::-1]

    @property
    def known(self) -> bool:
        return bool(self._curve)

    def seconds(self, rows: float) -> float:
        """Expected seconds of a step; needs at least one observation."""
        curve = self._curve
        first_rows, first = curve[0]
        slope = first / (first_rows + FIXED_ROWS)  # where nothing is measured
        if rows <= first_rows:
            return max(first - slope * (first_rows - rows), first / 10)
        for (r0, s0), (r1, s1) in itertools.pairwise(curve):
            if rows <= r1:
                return s0 + (s1 - s0) * (rows - r0) / (r1 - r0)
        last_rows, last = curve[-1]
        return last + slope * (rows - last_rows)


@dataclass(slots=True)
class DraftPolicy:
    """One for an engine. Knows no tensors, no blocks and no tokens."""

    cost: StepCost = field(default_factory=StepCost)
    _chances: dict[tuple[str, int], Chance] = field(default_factory=dict)
    _idle_steps: int = 0

    def least_chance(self, replies: int, rows: int) -> float:
        """The chance from which on one draft token more makes the step faster per token; 0 when
        it is time to try."""
        if not self.cost.known or self._idle_steps >= PROBE_EVERY:
            return 0.0
        now, more = self.cost.seconds(rows), self.cost.seconds(rows + 1)
        return replies * (more - now) / self.cost.seconds(replies)

    def best_chance(self) -> float:
        """Of any source and length of match; 1 before anything was verified."""
        return max((self._mean(key) for key in self._chances), default=1.0)

    def _mean(self, key: tuple[str, int]) -> float:
        chance = self._chances.get(key)
        return chance.mean(PRIOR_CHANCE) if chance else PRIOR_CHANCE

    def chance(self, draft: Draft, own: Chance) -> float:
        """Of each token of a draft for a reply whose drafts did as ``own`` says."""
        return own.mean(self._mean(_key(draft)))

    def lengths(self, drafts: Items[tuple[Draft, Chance]], replies: int, rows: int) -> list[int]:
        """How many tokens of each draft to verify in a step of ``replies`` replies that has
        ``rows`` rows without drafts."""
        taken = [0] * len(drafts)
        offers = sorted(
            (-(self.chance(draft, own) ** place), place, index)
            for index, (draft, own) in enumerate(drafts)
            for place in range(1, len(draft.tokens) + 1)
        )
        count = self._best_count([-chance for chance, _, _ in offers], replies, rows)
        if not count and offers and self._idle_steps >= PROBE_EVERY:
            count = 1
        for _, _, index in offers[:count]:
            taken[index] += 1
        self._idle_steps = 0 if count else self._idle_steps + 1
        return taken

    def _best_count(self, chances: list[float], replies: int, rows: int) -> int:
        if not self.cost.known:
            return 0
        tokens = float(replies)
        prompts = self.cost.seconds(rows) - self.cost.seconds(replies)
        best, best_rate = 0, tokens / self.cost.seconds(replies)
        for count, chance in enumerate(chances, start=1):
            tokens += chance
            rate = tokens / (self.cost.seconds(rows + count) - prompts)
            if rate > best_rate:
                best, best_rate = count, rate
        return best

    def verified(self, draft: Draft, own: Chance, stood: int) -> None:
        """``stood`` tokens of the draft were what the model chose, from its begin."""
        tried = min(stood + 1, len(draft.tokens))
        self._chances.setdefault(_key(draft), Chance()).update(stood, tried, 0.98)
        own.update(stood, tried, 0.8)


def _key(draft: Draft) -> tuple[str, int]:
    return draft.source, min(draft.match, LONGEST_KEY)
