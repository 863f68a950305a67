"""How values look."""

from zoneinfo import ZoneInfo

import pytest

from ui import tables
from ui.metrics import METRICS, better, shown, value_of
from ui.show import duration, escaped, number, plural, when
from ui.site_problems import in_words

BY_LABEL = {metric.label: metric for metric in METRICS}


def test_times_are_in_the_browsers_zone() -> None:
    assert when(1_764_000_000_000, ZoneInfo("UTC")) == "24 Nov 2025 16:00"
    assert when(1_764_000_000_000, ZoneInfo("Asia/Tokyo")) == "25 Nov 2025 01:00"
    assert when(None) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0, "0 s"), (59.6, "1 min 0 s"), (65, "1 min 5 s"), (7380, "2 h 3 min")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_numbers() -> None:
    assert number(None) == "–"
    assert number(182340) == "182,340"
    assert number(2.128) == "2.13"
    assert number(268.4, 0) == "268"
    assert plural(1, "reply", "replies") == "1 reply"
    assert plural(0, "dialogue") == "0 dialogues"


def test_markdown_is_escaped_in_labels() -> None:
    assert escaped("**a** [b](c) <i> :red[x] $x$") == (
        "\\*\\*a\\*\\* \\[b\\]\\(c\\) \\<i\\> \\:red\\[x\\] \\$x\\$"
    )


def test_metrics_know_which_way_is_better() -> None:
    assert better(BY_LABEL["Perplexity"], 2.0, 2.2) is True
    assert better(BY_LABEL["Stop rate"], 0.4, 0.9) is False
    assert better(BY_LABEL["chrF"], 40.0, 40.0) is None
    assert better(BY_LABEL["chrF"], None, 40.0) is None
    assert better(BY_LABEL["Reply length"], 3.0, 4.0) is None
    assert better(BY_LABEL["Seconds per reply"], 3.0, 4.0) is None  # the machine's, not its own


def test_a_metric_that_is_missing_or_odd_is_a_dash() -> None:
    perplexity = BY_LABEL["Perplexity"]
    assert shown(perplexity, value_of(perplexity, {"perplexity": None})) == "–"
    assert shown(perplexity, value_of(perplexity, None)) == "–"
    assert (
        shown(BY_LABEL["Stop rate"], value_of(BY_LABEL["Stop rate"], {"stop_rate": 1})) == "100.0%"
    )


def test_problems_of_a_site_have_the_labels_of_its_form() -> None:
    assert in_words("widget.hours.tue.0: String should have at most 11 characters") == [
        "Tuesday: String should have at most 11 characters"
    ]
    assert in_words("widget.hours: Value error, mon: at most 6 spans") == [
        "Hours: mon: at most 6 spans"
    ]
    assert in_words("name: String should match pattern '^x$'")[0].startswith("Name: lower-case")
    assert in_words("the disk is full") == ["the disk is full"]


def test_columns_that_say_nothing_are_left_out() -> None:
    rows = [{"A": "", "B": "–", "C": 0, "D": ""}, {"A": "", "B": "", "C": None, "D": "x"}]
    assert tables.filled(rows) == ["A", "C", "D"]


def test_what_an_audit_entry_holds_is_said_in_words() -> None:
    data = {"settings": {"max_steps": 20, "auto_promote": False, "limit": None}, "reasons": []}
    assert tables.in_words(data) == "max steps 20, auto promote no"
    assert tables.in_words({"origins": ["https://a.example", "https://b.example"]}) == (
        "origins https://a.example; https://b.example"
    )
    assert tables.in_words({"previous": ""}) == ""
