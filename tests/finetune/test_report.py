"""The report: complete numbers, a page that loads nothing and runs nothing."""

import json
import re
from html.parser import HTMLParser
from typing import Any

from chatbot.settings import Settings
from finetune.evaluate import Metrics, Turn
from finetune.generate import Reply
from finetune.report import ROWS, Judged, build_report, render_html
from finetune.transcripts import Dialogue
from finetune.transcripts.openai_chat import dialogue_from
from tests.finetune.data import dialogue

ATTACK = '<script>alert(1)</script><img src=x onerror="alert(2)">{{ 7*7 }}'


def metrics(version: str, perplexity: float | None, **changes: Any) -> Metrics:
    values: dict[str, Any] = dict.fromkeys(Metrics.__dataclass_fields__)
    values |= {"version": version, "perplexity": perplexity, "stop_rate": 0.98, "turns": 20}
    values |= {"exact_match": 0.25, "chrf": 44.4, "bleu": 30.1, "mean_tokens": 14.0}
    values |= {"perplexity_turns": 30, "turns_left_out": 0}
    return Metrics(**{**values, **changes})


def held_out() -> list[Dialogue]:
    items = [dialogue(number) for number in range(12)]
    items[0]["messages"][1]["content"] = ATTACK
    return [dialogue_from(item) for item in items]


def report(**changes: Any) -> dict[str, Any]:
    turns = [Turn(number, 3) for number in range(12)]
    replies = {turn: Reply(f"reply {ATTACK}", 5, True) for turn in turns}
    candidate = Judged(metrics("v1", 2.0), replies)
    base = Judged(metrics("base-x", 8.3), dict(list(replies.items())[1:]))
    given: dict[str, Any] = {
        "created_at": 1_700_000_000_000,
        "base": "smollm2-135m",
        "dataset": {"fingerprint": "f" * 64, "dialogues": 400, "tokens": 250_000},
        "run_settings": {"rank": 16, "note": ATTACK},
        "training": {
            "steps": 50,
            "seconds": 960.0,
            "tokens_per_s": 266.0,
            "loss": [[step, 3 / step] for step in range(1, 51)],
        },
        "judged": {"candidate": candidate, "live": base, "base": base},
        "held_out": held_out(),
        "turns": turns,
        "settings": Settings(),
    }
    return build_report(**{**given, **changes})


def test_the_shape_is_that_of_the_decision_record() -> None:
    found = report()
    keys = "base created_at dataset decision examples models schema settings training"
    assert " ".join(sorted(found)) == keys
    assert found["schema"] == 1
    assert found["decision"] == {"passed": True, "reasons": []}
    assert found["models"]["candidate"]["perplexity"] == 2.0
    assert found["models"]["live"] == found["models"]["base"]
    assert len(found["examples"]) == 10
    first = found["examples"][0]
    assert first["replies"]["candidate"].startswith("reply ")
    assert first["replies"]["base"] is None
    assert first["reference"] == "Order 0 was sent."
    assert (first["kind"], first["context"][0]["role"]) == ("custom", "system")
    assert json.loads(json.dumps(found)) == found


def test_every_measure_has_a_row() -> None:
    assert set(ROWS) | {"version"} == set(Metrics.__dataclass_fields__)


def test_a_candidate_that_fails_says_why() -> None:
    worse = Judged(metrics("v2", 9.0, stop_rate=0.5), {})
    better = Judged(metrics("v1", 2.0), {})
    found = report(judged={"candidate": worse, "live": better, "base": better})
    assert not found["decision"]["passed"]
    assert len(found["decision"]["reasons"]) == 2
    assert "May not be promoted" in render_html(found)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    html = render_html(report())
    page = Page()
    page.feed(html)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert sum(tag == "img" for tag, _ in page.tags) == 2
    assert not re.search(r"url\(|@import|https?://", html)
    assert "&lt;script&gt;alert(1)" in html
    assert "{{ 7*7 }}" in html


def test_the_page_marks_the_best_and_shows_what_there_is() -> None:
    html = render_html(report())
    assert '<td class="best">2.000</td><td>8.300</td><td>8.300</td>' in html
    assert "May be promoted" in html
    assert "(beyond the context)" in html
    assert "custom turns" not in html.split("<h2>Replies")[0]  # no numbers, no row


def test_a_report_without_training_live_version_or_turns() -> None:
    candidate = Judged(metrics("v1", None, stop_rate=None), {})
    found = report(
        training=None, judged={"candidate": candidate, "live": None, "base": None}, turns=[]
    )
    assert found["models"]["live"] is None
    assert not found["decision"]["passed"]
    html = render_html(found)
    assert "Training loss" not in html
    assert "No agent turn" in html
