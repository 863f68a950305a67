"""The promotion rule, pure: may this version become live, judged by its report?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chatbot.settings import Settings


@dataclass(frozen=True, slots=True)
class Decision:
    """``reasons`` say what did not pass; none when it passed."""

    passed: bool
    reasons: list[str]


def check_promotion(report: Mapping[str, Any], settings: Settings) -> Decision:
    """Compare the candidate with the live version on the same held-out dialogues.

    ``report["models"]`` has the numbers of ``candidate`` and ``live`` (or None), each with
    ``perplexity`` and ``stop_rate``. Numbers at the top level of the report replace those: they
    are of what is live now, where that changed since the report was written.
    """
    candidate, live = _numbers(report, "candidate"), _numbers(report, "live")
    perplexity, stop_rate = _number(candidate, "perplexity"), _number(candidate, "stop_rate")
    if perplexity is None or stop_rate is None:
        return Decision(False, ["the report lacks the candidate's perplexity or stop rate"])
    reasons = []
    compared = _number(live, "perplexity")
    if compared is not None:
        most = compared * settings.promote_max_perplexity_ratio
        if perplexity > most:
            reasons.append(
                f"perplexity {perplexity:.3f} is above {most:.3f}, "
                f"{settings.promote_max_perplexity_ratio} times the live version's"
            )
    if stop_rate < settings.promote_min_stop_rate:
        reasons.append(f"stop rate {stop_rate:.1%} is below {settings.promote_min_stop_rate:.1%}")
    return Decision(not reasons, reasons)


def _numbers(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    models = report.get("models") or {}
    return {**(models.get(name) or {}), **(report.get(name) or {})}


def _number(metrics: Mapping[str, Any], name: str) -> float | None:
    value = metrics.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
