"""The evidence of a version: report.json, and the same as one page that needs nothing else."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from chatbot.promotion import check_promotion
from chatbot.settings import Settings
from finetune.evaluate import Metrics, Turn
from finetune.generate import Reply
from finetune.transcripts import Dialogue
from finetune.transcripts.model import agent_kinds

SCHEMA = 1
EXAMPLES = 10
CONTEXT_MESSAGES = 4
MODELS = ("candidate", "live", "base")
COLOURS = {"candidate": "#2563eb", "live": "#0d9488", "base": "#94a3b8"}
TEMPLATES = Path(__file__).parent / "templates"

# name -> (label, number format, what is better)
ROWS: dict[str, tuple[str, str, str]] = {
    "perplexity": ("Perplexity, agent turns", "{:.3f}", "lower"),
    "perplexity_template": ("… template turns", "{:.3f}", "lower"),
    "perplexity_custom": ("… custom turns", "{:.3f}", "lower"),
    "exact_match": ("Exact match", "{:.1%}", "higher"),
    "exact_match_template": ("… template turns", "{:.1%}", "higher"),
    "exact_match_custom": ("… custom turns", "{:.1%}", "higher"),
    "chrf": ("chrF", "{:.1f}", "higher"),
    "bleu": ("BLEU", "{:.1f}", "higher"),
    "stop_rate": ("Stop rate (128 tokens)", "{:.1%}", "higher"),
    "mean_tokens": ("Reply length, tokens", "{:.1f}", ""),
    "seconds_per_reply": ("Seconds per reply", "{:.2f}", "lower"),
    "turns": ("Replies written", "{:,}", ""),
    "perplexity_turns": ("Turns in perplexity", "{:,}", ""),
    "turns_left_out": ("Turns beyond the context", "{:,}", ""),
}


@dataclass(frozen=True, slots=True)
class Judged:
    """A model's numbers and the replies it wrote."""

    metrics: Metrics
    replies: Mapping[Turn, Reply]


def build_report(
    *,
    created_at: int,
    base: str,
    dataset: Mapping[str, Any],
    run_settings: Mapping[str, Any],
    training: Mapping[str, Any] | None,
    judged: Mapping[str, Judged | None],
    held_out: Sequence[Dialogue],
    turns: Sequence[Turn],
    settings: Settings,
) -> dict[str, Any]:
    """report.json (shape: docs/decisions/0003-training.md). ``created_at`` is Unix ms; ``judged``
    has candidate, live and base; ``turns`` in the order of the sample."""
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "created_at": created_at,
        "base": base,
        "dataset": dict(dataset),
        "settings": dict(run_settings),
        "training": dict(training) if training is not None else None,
        "models": {
            name: model.metrics.as_dict() if (model := judged.get(name)) else None
            for name in MODELS
        },
        "examples": _examples(judged, held_out, turns[:EXAMPLES]),
    }
    decision = check_promotion(report, settings)
    report["decision"] = {"passed": decision.passed, "reasons": list(decision.reasons)}
    return report


def _examples(
    judged: Mapping[str, Judged | None], held_out: Sequence[Dialogue], turns: Sequence[Turn]
) -> list[dict[str, Any]]:
    examples = []
    for turn in turns:
        dialogue = held_out[turn.dialogue]
        before = dialogue.messages[max(0, turn.message - CONTEXT_MESSAGES) : turn.message]
        replies = {
            name: model.replies[turn].text if model and turn in model.replies else None
            for name in MODELS
            for model in [judged.get(name)]
        }
        examples.append(
            {
                "id": str(dialogue.meta.get("id", "")),
                "kind": agent_kinds(dialogue).get(turn.message, ""),
                "context": [{"role": m["role"], "content": m["content"]} for m in before],
                "reference": dialogue.messages[turn.message]["content"],
                "replies": replies,
            }
        )
    return examples


def render_html(report: Mapping[str, Any]) -> str:
    """One page with inline styles and pictures. Every text of a transcript or a model is escaped:
    it was typed by strangers."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [name for name in MODELS if report["models"].get(name)]
    losses = (report.get("training") or {}).get("loss") or []
    return environment.get_template("report.html").render(
        report=report,
        shown=shown,
        colours=COLOURS,
        rows=_rows(report["models"], shown),
        tiles=_tiles(report),
        loss_plot=_loss_plot(losses) if losses else "",
        bars=_bars(report["models"], shown),
    )


def _rows(models: Mapping[str, Any], shown: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for name, (label, pattern, better) in ROWS.items():
        values = {model: models[model].get(name) for model in shown}
        numbers = [value for value in values.values() if value is not None]
        if not numbers:
            continue
        best = {"lower": min, "higher": max}[better](numbers) if better else None
        cells = [
            {
                "text": "–" if value is None else pattern.format(value),
                "best": len(numbers) > 1 and value is not None and value == best,
            }
            for value in values.values()
        ]
        rows.append({"label": label, "cells": cells, "better": better})
    return rows


def _tiles(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    dataset, training = report["dataset"], report.get("training") or {}
    tiles = [("Base model", str(report["base"]))]
    if dataset.get("dialogues"):
        tiles.append(("Dialogues", f"{dataset['dialogues']:,}"))
    if dataset.get("tokens"):
        tiles.append(("Tokens", f"{dataset['tokens']:,}"))
    if training.get("steps"):
        tiles += [
            ("Steps", f"{training['steps']:,}"),
            ("Training time", f"{training['seconds'] / 60:.1f} min"),
            ("Tokens/s", f"{training['tokens_per_s']:.0f}"),
        ]
    return tiles


# -- pictures


def _loss_plot(losses: Sequence[Sequence[float]]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.add_subplot()
    steps, values = [point[0] for point in losses], [point[1] for point in losses]
    axes.plot(steps, values, color="#93c5fd", linewidth=1, label="each step")
    width = max(1, len(values) // 20)
    if width > 1:
        smooth = [
            sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1])
            for i in range(len(values))
        ]
        axes.plot(steps, smooth, color=COLOURS["candidate"], linewidth=2, label=f"mean of {width}")
        axes.legend(frameon=False)
    axes.set_xlabel("step")
    axes.set_ylabel("loss per agent token, nats")
    _plain_axes(axes)
    return _png(figure)


def _bars(models: Mapping[str, Any], shown: Sequence[str]) -> str:
    from matplotlib.figure import Figure

    wanted = ("perplexity", "exact_match", "chrf", "stop_rate", "mean_tokens")
    names = [n for n in wanted if any(models[m].get(n) is not None for m in shown)]
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, max(1, len(names)), place + 1)
        label, pattern, _ = ROWS[name]
        values = [models[model].get(name) or 0.0 for model in shown]
        bars = axes.bar(shown, values, color=[COLOURS[model] for model in shown], width=0.65)
        axes.bar_label(bars, [pattern.format(value) for value in values], fontsize=8, padding=2)
        axes.set_title(label.replace(", ", "\n").replace(" (", "\n("), fontsize=9)
        axes.set_yticks([])
        axes.margins(y=0.18)
        axes.tick_params(axis="x", labelsize=8, length=0)
        _plain_axes(axes, left=False)
    return _png(figure)


def _plain_axes(axes: Any, left: bool = True) -> None:
    for side in ("top", "right", *(() if left else ("left",))):
        axes.spines[side].set_visible(False)


def _png(figure: Any) -> str:
    """A data URL. The figure is drawn without pyplot, so without process-wide state."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
