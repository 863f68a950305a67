"""Choosing the next tokens of many replies, each by its own parameters.

The order of operations and their meaning are those of transformers: repetition penalty (CTRL,
arXiv 1909.05858), temperature, top-k, top-p (nucleus sampling, arXiv 1904.09751). The draw is by
the inverse of the cumulative distribution from one uniform number per token, which each reply
takes from a generator of its own: other replies in the batch neither see nor change it.
"""

import random
from collections.abc import Sequence as Items

import torch

from chatbot.engine.interface import SamplingParams

# most nuclei hold fewer tokens than this; those that do not are ranked in full
FEW_CANDIDATES = 256


class TokenChooser:
    """The sampling state of one reply: its parameters, its random numbers, the tokens it has
    seen (for the repetition penalty) and the probabilities of those it chose."""

    def __init__(self, params: SamplingParams, prompt: Items[int]) -> None:
        self.params = params
        self.probability_sum = 0.0
        self.chosen = 0
        self._random = random.Random(params.seed)  # None: seeded by the system
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

    @property
    def seen(self) -> list[int]:
        """Tokens of prompt and reply, each once; kept only where there is a penalty."""
        return list(self._seen)

    @property
    def confidence(self) -> float | None:
        """Mean probability of the chosen tokens, 0..1, as the bare model saw them (before
        penalty and temperature); None before the first."""
        return self.probability_sum / self.chosen if self.chosen else None

    def uniform(self) -> float:
        return self._random.random()

    def record(self, token: int, probability: float) -> None:
        self.probability_sum += probability
        self.chosen += 1
        if self.penalised:
            self._seen[token] = None


def choose_tokens(
    logits: torch.Tensor, choosers: Items[TokenChooser]
) -> tuple[list[int], list[float]]:
    """One token for each row of ``logits`` [rows, vocabulary], and its probability under the bare
    model. A probability that is NaN says that the row's logits are not finite."""
    scores = logits.float()
    normaliser = torch.logsumexp(scores, dim=-1, keepdim=True)  # [rows, 1]
    adjusted = _penalise(scores, choosers)
    chosen = adjusted.argmax(dim=-1)  # [rows]
    drawn = [row for row, chooser in enumerate(choosers) if not chooser.greedy]
    if drawn:
        chosen[drawn] = _draw(adjusted[drawn], [choosers[row] for row in drawn])
    probabilities = (scores.gather(1, chosen[:, None]) - normaliser).exp()
    probabilities = probabilities.masked_fill(~normaliser.isfinite(), torch.nan).squeeze(1)
    return chosen.tolist(), probabilities.tolist()


def _penalise(scores: torch.Tensor, choosers: Items[TokenChooser]) -> torch.Tensor:
    """Scores [rows, vocabulary] after each row's repetition penalty; a copy if there is any."""
    if not any(chooser.penalised for chooser in choosers):
        return scores
    scores = scores.clone()
    for row, chooser in enumerate(choosers):
        if chooser.penalised:
            penalty = chooser.params.repetition_penalty
            ids = torch.tensor(chooser.seen, dtype=torch.long, device=scores.device)
            seen = scores[row, ids]
            scores[row, ids] = torch.where(seen < 0, seen * penalty, seen / penalty)
    return scores


def _draw(scores: torch.Tensor, choosers: Items[TokenChooser]) -> torch.Tensor:
    """Draw one token per row of scores [rows, vocabulary] -> [rows].

    Which of the ways below a row goes depends on the row alone, never on its neighbours: they
    order the tokens differently, so the same random number picks different ones.
    """

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=scores.device)[:, None]

    scores = scores / column([chooser.params.temperature for chooser in choosers]).float()
    uniform = column([chooser.uniform() for chooser in choosers])
    limits = column([chooser.params.top_k or scores.shape[1] for chooser in choosers])
    bounds = column([chooser.params.top_p for chooser in choosers])
    tokens = torch.empty(len(choosers), dtype=torch.long, device=scores.device)
    plain = [row for row, chooser in enumerate(choosers) if not chooser.restricted]
    if plain:
        tokens[plain] = _inverse(torch.softmax(scores[plain], dim=-1), uniform[plain])
    rows = [row for row, chooser in enumerate(choosers) if chooser.restricted]
    for candidates in (FEW_CANDIDATES, scores.shape[1]):
        if not rows:
            break
        picked, certain = _draw_ranked(
            scores[rows], limits[rows], bounds[rows], uniform[rows], candidates
        )
        tokens[rows] = picked
        rows = [row for row, fits in zip(rows, certain.tolist(), strict=True) if not fits]
    return tokens


def _draw_ranked(
    scores: torch.Tensor,  # [rows, vocabulary]
    limits: torch.Tensor,  # [rows, 1] top-k
    bounds: torch.Tensor,  # [rows, 1] top-p
    uniform: torch.Tensor,  # [rows, 1]
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
    picked = _inverse(weights.masked_fill(outside, 0.0), uniform)
    return order.gather(1, picked[:, None]).squeeze(1), certain.squeeze(1)


def _inverse(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Index [rows] at which the cumulated weights [rows, n] pass ``uniform`` [rows, 1] of their
    sum. Never one of weight 0: there the cumulated weights do not rise."""
    cumulated = weights.double().cumsum(dim=-1)
    index = torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)
    return index.clamp(max=weights.shape[1] - 1).squeeze(1)
