"""The promotion rule."""

from typing import Any

import pytest

from chatbot.promotion import check_promotion
from chatbot.settings import Settings

SETTINGS = Settings(promote_max_perplexity_ratio=1.02, promote_min_stop_rate=0.95)


def report(live: Any, perplexity: Any = 2.0, stop_rate: Any = 0.99) -> dict[str, Any]:
    candidate = {"perplexity": perplexity, "stop_rate": stop_rate}
    return {"models": {"candidate": candidate, "live": live, "base": {"perplexity": 8.0}}}


@pytest.mark.parametrize(
    "live",
    [None, {}, {"perplexity": 2.0}, {"perplexity": 1.97}, {"perplexity": None}],
)
def test_passes(live: Any) -> None:
    decision = check_promotion(report(live), SETTINGS)
    assert (decision.passed, decision.reasons) == (True, [])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (report({"perplexity": 1.9}), ["perplexity 2.000 is above 1.938"]),
        (report({"perplexity": 3}, stop_rate=0.5), ["stop rate 50.0% is below 95.0%"]),
        (report({"perplexity": 1}, stop_rate=0.5), ["perplexity", "stop rate"]),
        (report(None, perplexity=None), ["lacks the candidate's perplexity"]),
        (report(None, perplexity=float("nan")), ["lacks the candidate's"]),
        (report(None, stop_rate=True), ["lacks the candidate's"]),
        ({}, ["lacks the candidate's"]),
        ({"models": None}, ["lacks the candidate's"]),
    ],
)
def test_refuses_with_every_reason(given: dict[str, Any], says: list[str]) -> None:
    decision = check_promotion(given, SETTINGS)
    assert not decision.passed
    assert len(decision.reasons) == len(says)
    for reason, expected in zip(decision.reasons, says, strict=True):
        assert expected in reason


def test_what_is_live_now_replaces_what_was_live_then() -> None:
    now = {**report({"perplexity": 8.0}), "live": {"perplexity": 1.5}}
    assert not check_promotion(now, SETTINGS).passed
    assert check_promotion(report({"perplexity": 8.0}), SETTINGS).passed
