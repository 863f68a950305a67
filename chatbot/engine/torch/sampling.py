"""Choosing the next tokens of many replies, each by its own parameters.

The order of operations and their meaning are those of transformers: repetition penalty (CTRL,
arXiv 1909.05858), temperature, top-k, top-p (nucleus sampling, arXiv 1904.09751). Of what they
leave, the token is drawn whose logarithmic probability plus Gumbel noise is largest (the Gumbel-max
trick, arXiv 1611.01144). The noise belongs to the reply's seed, the place in the reply and the
token: other replies in the batch neither see nor change it, and where probabilities come out a
little different, as on another kind of processor, the same seed gives another token near a tie
alone. (A number that is looked up in the cumulated probabilities gives another one far more often:
what is rounded at one token moves all that come after it.)

Drafted tokens are verified by choosing at each of their places as if there were no draft, with the
noise that belongs to the place, and going on while the choice is what was drafted. A draft
is a guess without a spread, so that is the rule of speculative sampling (arXiv 2211.17192): token
``d`` stands with probability ``p(d)``, and what replaces it has the distribution ``p`` without
``d``. And more: the same seed gives the same reply, whatever was drafted.
"""

import math
import random
from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch

from chatbot.engine.interface import SamplingParams
from chatbot.engine.torch.scheduler import Work

# most nuclei hold fewer tokens than this; those that do not are ranked in full
FEW_CANDIDATES = 256
# of splitmix64 (Steele, Lea, Flood, doi 10.1145/2660193.2660195), as signed numbers
_STEP, _FIRST, _SECOND = (
    number - (1 << 64) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


class TokenChooser:
    """The sampling state of one reply: its parameters, its random numbers, the tokens it has
    seen (for the repetition penalty) and the probabilities of those it chose."""

    def __init__(self, params: SamplingParams, prompt: Items[int]) -> None:
        self.params = params
        self.probability_sum = 0.0
        self._product = 1.0
        self.chosen = 0
        self._random = random.Random(params.seed)  # None: seeded by the system
        self._keys: deque[int] = deque()  # of the next tokens
        self._seen: dict[int, None] = {}
        if self.penalised:
            self._seen = dict.fromkeys(prompt)

    @property
    def penalised(self) -> bool:
        return self.params.repetition_penalty != 1.0

    @property
    def greedy(self) -> bool:
        return self.params.temperature == 0.0

    @property
    def restricted(self) -> bool:
        """Whether top-k or top-p leave tokens out."""
        return self.params.top_k > 0 or self.params.top_p < 1.0

    def seen(self, ahead: tuple[int, ...]) -> list[int]:
        """Tokens of prompt, reply and ``ahead``, each once; kept only where there is a penalty."""
        return list(self._seen | dict.fromkeys(ahead))

    @property
    def confidence(self) -> float | None:
        """Mean probability of the chosen tokens, 0..1, as the bare model saw them (before
        penalty and temperature); None before the first."""
        return self.probability_sum / self.chosen if self.chosen else None

    @property
    def probability(self) -> float | None:
        """Product of the same probabilities: how probable this very reply was."""
        return self._product if self.chosen else None

    def key(self, ahead: int) -> int:
        """What the noise of the token after the next ``ahead`` ones is made of, 63 bits."""
        while len(self._keys) <= ahead:
            self._keys.append(self._random.getrandbits(63))
        return self._keys[ahead]

    def record(self, token: int, probability: float) -> None:
        """The token is part of the reply now."""
        if self._keys:
            self._keys.popleft()
        self.probability_sum += probability
        self._product *= probability
        self.chosen += 1
        if self.penalised:
            self._seen[token] = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What one reply's step gave: the drafted tokens that stood and the one after them, and the
    probability of each under the bare model. A last probability that is NaN says that the logits
    are not finite."""

    tokens: tuple[int, ...]  # [1 or more]
    probabilities: tuple[float, ...]  # like tokens

    @property
    def broken(self) -> bool:
        return any(math.isnan(probability) for probability in self.probabilities)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of logits: the tokens ``ahead``, drafted and not yet part of the reply, stand between
    the reply so far and the token to be chosen."""

    chooser: TokenChooser
    ahead: tuple[int, ...] = ()


def rows_of(works: Items[Work]) -> list[Row]:
    """The rows whose logits are wanted, in the order of the works."""
    return [
        Row(_chooser(work), work.drafted[:count]) for work in works for count in range(work.choices)
    ]


def plainly_greedy(works: Items[Work]) -> bool:
    """Whether the best token is the choice in every row."""
    choosers = [_chooser(work) for work in works if work.samples]
    return all(chooser.greedy and not chooser.penalised for chooser in choosers)


def _chooser(work: Work) -> TokenChooser:
    chooser = work.sequence.chooser
    if chooser is None:
        raise ValueError(f"sequence {work.sequence.request_id} has no token chooser")
    return chooser


def verify(works: Items[Work], tokens: Items[int], probabilities: Items[float]) -> list[Choice]:
    """One choice for each work that samples, from the tokens chosen in :func:`rows_of`."""
    pairs = iter(zip(tokens, probabilities, strict=True))
    return [_stands(work, pairs) for work in works if work.samples]


def _stands(work: Work, pairs: Iterator[tuple[int, float]]) -> Choice:
    rows = [next(pairs) for _ in range(work.choices)]
    count = 0
    for token, (chosen, probability) in zip(work.drafted, rows, strict=False):
        if chosen != token or math.isnan(probability):
            break
        count += 1
    kept = rows[: count + 1]
    return Choice(tuple(token for token, _ in kept), tuple(chance for _, chance in kept))


def choose_tokens(logits: torch.Tensor, rows: Items[Row]) -> tuple[list[int], list[float]]:
    """One token for each row of ``logits`` [rows, vocabulary], and its probability under the bare
    model. A probability that is NaN says that the row's logits are not finite."""
    # all NaN where one of the scores is NaN or infinite
    logs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    # they order tokens as the logits do, and are a copy in float32 already
    scores = logits if logits.dtype == torch.float32 else logs
    adjusted = _penalise(scores, logits, rows)
    chosen = adjusted.max(dim=-1).indices  # [rows]; twice as fast as argmax
    drawn = [place for place, row in enumerate(rows) if not row.chooser.greedy]
    if drawn:
        chosen[drawn] = _draw(adjusted[drawn], [rows[place] for place in drawn])
    probabilities = logs.gather(1, chosen[:, None]).exp().squeeze(1)
    return chosen.tolist(), probabilities.tolist()


def _penalise(scores: torch.Tensor, logits: torch.Tensor, rows: Items[Row]) -> torch.Tensor:
    """Scores [rows, vocabulary], where rows with a repetition penalty are their logits after it; a
    copy if there is any."""
    if not any(row.chooser.penalised for row in rows):
        return scores
    scores = scores.clone()
    for place, row in enumerate(rows):
        if row.chooser.penalised:
            penalty = row.chooser.params.repetition_penalty
            seen = row.chooser.seen(row.ahead)
            ids = torch.tensor(seen, dtype=torch.long, device=scores.device)
            scores[place] = logits[place]  # the penalty depends on the sign
            known = scores[place, ids]
            scores[place, ids] = torch.where(known < 0, known * penalty, known / penalty)
    return scores


def _draw(scores: torch.Tensor, rows: Items[Row]) -> torch.Tensor:
    """Draw one token per row of scores [rows, vocabulary] -> [rows]."""

    def column(values: list[float], dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=scores.device)[:, None]

    choosers = [row.chooser for row in rows]
    scores = scores / column([chooser.params.temperature for chooser in choosers]).float()
    keys = column([row.chooser.key(len(row.ahead)) for row in rows], torch.long)
    limits = column([chooser.params.top_k or scores.shape[1] for chooser in choosers])
    bounds = column([chooser.params.top_p for chooser in choosers])
    tokens = torch.empty(len(choosers), dtype=torch.long, device=scores.device)
    plain = [place for place, chooser in enumerate(choosers) if not chooser.restricted]
    for place in plain:  # noise for all at once is too much for the processor's caches
        every = torch.arange(scores.shape[1], device=scores.device)
        tokens[place] = (scores[place] + _noise(keys[place], every)).argmax()
    left = [place for place, chooser in enumerate(choosers) if chooser.restricted]
    for candidates in (FEW_CANDIDATES, scores.shape[1]):
        if not left:
            break
        picked, certain = _draw_ranked(
            scores[left], limits[left], bounds[left], keys[left], candidates
        )
        tokens[left] = picked
        left = [place for place, fits in zip(left, certain.tolist(), strict=True) if not fits]
    return tokens


def _draw_ranked(
    scores: torch.Tensor,  # [rows, vocabulary]
    limits: torch.Tensor,  # [rows, 1] top-k
    bounds: torch.Tensor,  # [rows, 1] top-p
    keys: torch.Tensor,  # [rows, 1]
    candidates: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw among the most probable ``candidates`` of each row: the tokens [rows], and whether
    the candidates were enough [rows]. Ranking a few is far cheaper than sorting a vocabulary."""
    candidates = min(candidates, scores.shape[1])
    ranked, order = scores.topk(candidates, dim=-1)
    rank = torch.arange(candidates, device=scores.device)
    ranked = ranked.masked_fill(rank >= limits, -torch.inf)
    # top-k decides first, and top-p sees only what it left
    within = limits <= candidates
    whole = torch.where(within, ranked.logsumexp(-1, True), scores.logsumexp(-1, True))
    weights = (ranked - whole).exp().double()
    # the nucleus: tokens before which less than top_p is gathered; never empty
    gathered = weights.cumsum(dim=-1)
    outside = gathered - weights >= bounds
    outside[:, 0] = False
    unlimited = limits >= scores.shape[1]
    certain = within | (unlimited & (gathered[:, -1:] >= bounds))
    noisy = (ranked + _noise(keys, order)).masked_fill(outside, -torch.inf)
    picked = noisy.argmax(-1, keepdim=True)
    return order.gather(1, picked).squeeze(1), certain.squeeze(1)


def _noise(keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Gumbel noise for tokens [rows, n] by keys [rows, 1], or [n] by [1]: always the same for
    the same key and token, and independent of that of others. The bits are the token's number in
    the stream that splitmix64 makes of the key."""
    bits = tokens * _STEP + keys  # wraps, as all that follows
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        bits.bitwise_xor_(_shifted(bits, shift)).mul_(factor)
    bits = _shifted(bits.bitwise_xor_(_shifted(bits, 31)), 11)  # 53 of them
    uniform = bits.double().add_(0.5).mul_(2.0**-53)  # never 0 nor 1
    return uniform.log_().neg_().log_().neg_().float()


def _shifted(bits: torch.Tensor, count: int) -> torch.Tensor:
    """To the right, as if the numbers had no sign."""
    return (bits >> count).bitwise_and_((1 << (64 - count)) - 1)
