"""Choosing tokens: compared with transformers' own processors, and statistically."""

from collections import Counter

import pytest
import torch
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from chatbot.engine.interface import SamplingParams
from chatbot.engine.torch.sampling import Row, TokenChooser, choose_tokens
from chatbot.errors import RequestRefused


def chooser(prompt: tuple[int, ...] = (), **params: object) -> Row:
    return Row(TokenChooser(SamplingParams(**params), prompt))  # type: ignore[arg-type]


def draws(
    logits: torch.Tensor, count: int, prompt: tuple[int, ...] = (), **params: object
) -> Counter[int]:
    rows = [chooser(prompt, seed=seed, **params) for seed in range(count)]
    tokens, _ = choose_tokens(logits.expand(count, -1), rows)
    return Counter(tokens)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 1.4, "top_k": 5, "top_p": 0.8, "repetition_penalty": 1.5},
    ],
)
def test_the_distribution_is_that_of_transformers(params: dict[str, float]) -> None:
    """4000 draws; each share is within 5 standard deviations (1 false alarm in 10^5 runs)."""
    torch.manual_seed(3)
    prompt, count = (2, 5, 5), 4000
    logits = torch.randn(12) * 2
    scores, ids = logits[None].clone(), torch.tensor([prompt])
    if "repetition_penalty" in params:
        scores = RepetitionPenaltyLogitsProcessor(params["repetition_penalty"])(ids, scores)
    scores = TemperatureLogitsWarper(params["temperature"])(ids, scores)
    if "top_k" in params:
        scores = TopKLogitsWarper(int(params["top_k"]))(ids, scores)
    if "top_p" in params:
        scores = TopPLogitsWarper(params["top_p"])(ids, scores)
    wanted = scores.softmax(-1)[0].tolist()
    seen = draws(logits, count, prompt, **params)
    for token, share in enumerate(wanted):
        spread = (share * (1 - share) / count) ** 0.5
        assert abs(seen[token] / count - share) <= 5 * spread, token
        assert share > 0 or seen[token] == 0


@pytest.mark.parametrize(
    "params",
    [{}, {"top_p": 0.9}, {"top_k": 7}, {"top_p": 0.999}, {"top_k": 400, "top_p": 0.5}],
    ids=str,
)
def test_a_reply_s_draws_do_not_depend_on_its_neighbours(params: dict[str, float]) -> None:
    """Neighbours of every kind, some of which need a full ranking of 600 tokens."""
    torch.manual_seed(4)
    logits = torch.randn(6, 600)
    for seed in range(20):
        alone, _ = choose_tokens(logits[2:3], [chooser(temperature=1.0, seed=seed, **params)])
        rows = [
            chooser(),
            chooser(temperature=1.0, seed=1),
            chooser(temperature=1.0, seed=seed, **params),
            chooser(temperature=5.0, seed=3, top_p=0.99) if seed % 2 else chooser(),
            chooser(temperature=1.0, seed=4, top_k=2),
            chooser(temperature=1.0, seed=5, repetition_penalty=2.0),
        ]
        together, _ = choose_tokens(logits, rows)
        assert together[2] == alone[0]


def test_few_candidates_draw_as_the_full_ranking_does(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    logits = torch.randn(1, 600) * 3
    for params in ({"top_p": 0.9}, {"top_k": 9}, {"top_k": 300, "top_p": 0.95}):
        counted = []
        for few in (256, 600):
            monkeypatch.setattr("chatbot.engine.torch.sampling.FEW_CANDIDATES", few)
            counted.append(draws(logits, 300, temperature=1.0, **params))
        assert counted[0] == counted[1]


@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"top_k": 40}], ids=str)
def test_what_is_rounded_differently_draws_differently_near_ties_alone(
    params: dict[str, float],
) -> None:
    """As many draws change as the probabilities do, about half a percent."""
    torch.manual_seed(6)
    logits = torch.randn(1, 3000)
    count = 400
    rows = [chooser(temperature=1.0, seed=seed, **params) for seed in range(count)]
    before, _ = choose_tokens(logits.expand(count, -1), rows)
    rows = [chooser(temperature=1.0, seed=seed, **params) for seed in range(count)]
    rounded = logits * (1 + 0.004 * torch.rand(1, 3000))
    after, _ = choose_tokens(rounded.expand(count, -1), rows)
    assert sum(a != b for a, b in zip(before, after, strict=True)) <= 0.02 * count
    assert len(set(before)) > 30  # they do draw


def test_greedy_and_drawn_rows_mix() -> None:
    logits = torch.tensor([[0.0, 9.0, 1.0], [0.0, 9.0, 1.0]])
    tokens, _ = choose_tokens(logits, [chooser(), chooser(temperature=1.0, top_k=1)])
    assert tokens == [1, 1]


def test_confidence_is_the_mean_probability_of_the_bare_model() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    row = chooser((0,), repetition_penalty=2.0)
    one = row.chooser
    assert one.confidence is None
    assert one.probability is None
    for _ in range(2):
        (token,), (probability,) = choose_tokens(logits, [row])
        one.record(token, probability)
    assert one.confidence == pytest.approx(0.25)
    assert one.probability == pytest.approx(0.0625)


def test_logits_that_are_not_finite_show_as_nan() -> None:
    logits = torch.tensor([[0.0, float("nan")], [1.0, 0.0], [float("inf"), 0.0]])
    _, probabilities = choose_tokens(logits, [chooser(), chooser(), chooser(temperature=1.0)])
    assert [p != p for p in probabilities] == [True, False, True]


def test_parameters_out_of_range_are_refused_by_name() -> None:
    with pytest.raises(RequestRefused, match=r"top_p=1\.5"):
        SamplingParams(top_p=1.5)
