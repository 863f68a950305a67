"""The numbers of a report, in the order and words in which the console shows them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ui.answers import VersionDetail
from ui.show import number


@dataclass(frozen=True, slots=True)
class Metric:
    """``path`` leads to the number inside a report's metrics; ``lower_is_better`` None: neither."""

    label: str
    path: tuple[str, ...]
    kind: str  # number | share | seconds | whole
    lower_is_better: bool | None
    help: str
    overview: bool = False  # in the table of all versions, which has no room for every one


# fmt: off
METRICS: tuple[Metric, ...] = (
    Metric("Perplexity", ("perplexity",), "number", True,
           "Surprise at what agents really wrote in held-out dialogues", True),
    Metric("Exact match", ("exact_match",), "share", False,
           "Replies that are word for word what the agent wrote", True),
    Metric("Exact match, templates", ("exact_match_template",), "share", False,
           "Exact match in turns that agents took from a template"),
    Metric("Exact match, free text", ("exact_match_custom",), "share", False,
           "Exact match in turns that agents wrote freely"),
    Metric("chrF", ("chrf",), "number", False,
           "Likeness to the agent's reply by letters, 0 to 100", True),
    Metric("BLEU", ("bleu",), "number", False,
           "Likeness to the agent's reply by words, 0 to 100", True),
    Metric("Stop rate", ("stop_rate",), "share", False,
           "Replies that end by themselves; the others ramble on", True),
    Metric("Reply length", ("mean_tokens",), "number", None,
           "Tokens of a reply, on average"),
    Metric("Seconds per reply", ("seconds_per_reply",), "number", None,
           "On the machine that wrote the report, whatever else it did then"),
)
# fmt: on


def value_of(metric: Metric, metrics: Mapping[str, Any] | None) -> float | None:
    """The number, or None where the report has none."""
    value: Any = metrics
    for name in metric.path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def shown(metric: Metric, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1%}" if metric.kind == "share" else number(value, 2)


def better(metric: Metric, value: float | None, other: float | None) -> bool | None:
    """Whether ``value`` is better than ``other``; None when that cannot be said."""
    if metric.lower_is_better is None or value is None or other is None or value == other:
        return None
    return (value < other) == metric.lower_is_better


def columns_of(detail: VersionDetail) -> dict[str, Mapping[str, Any]]:
    """Whose numbers stand beside each other: this version, the live one of then, the base model;
    from the version's report, since only those are of the same dialogues. Without a report: its
    main numbers alone."""
    models = (detail.report or {}).get("models") or {}
    labels = {"candidate": detail.id, "live": "live then", "base": "base"}
    columns = {
        label: models[name] for name, label in labels.items() if isinstance(models.get(name), dict)
    }
    if columns or not detail.metrics:
        return columns
    return {detail.id: detail.metrics}
