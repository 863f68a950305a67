"""The promotion rule, pure: may this version become live, judged by its report?"""

from dataclasses import dataclass
from typing import Any

from chatbot.settings import Settings


@dataclass(frozen=True, slots=True)
class Decision:
    """``reasons`` say what did not pass; none when it passed."""

    passed: bool
    reasons: list[str]


def check_promotion(report: dict[str, Any], settings: Settings) -> Decision:
    """``report`` has the numbers of the ``candidate`` and of the ``live`` version (or None) on the
    same held-out dialogues, each with ``perplexity`` and ``stop_rate``."""
    candidate = report.get("candidate") or {}
    perplexity, stop_rate = candidate.get("perplexity"), candidate.get("stop_rate")
    if not isinstance(perplexity, int | float) or not isinstance(stop_rate, int | float):
        return Decision(False, ["the report lacks the candidate's perplexity or stop rate"])
    reasons = []
    live = (report.get("live") or {}).get("perplexity")
    if isinstance(live, int | float):
        most = live * settings.promote_max_perplexity_ratio
        if perplexity > most:
            reasons.append(
                f"perplexity {perplexity:.3f} is above {most:.3f}, "
                f"{settings.promote_max_perplexity_ratio} times the live version's"
            )
    if stop_rate < settings.promote_min_stop_rate:
        reasons.append(f"stop rate {stop_rate:.1%} is below {settings.promote_min_stop_rate:.1%}")
    return Decision(not reasons, reasons)
