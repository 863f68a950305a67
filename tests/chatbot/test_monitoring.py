"""Alerts and dashboard name metrics, labels and label values that exist."""

import json
import re
from pathlib import Path

import pytest
import yaml

from chatbot.settings import Settings
from chatbot.worker.metrics import OUTCOMES

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
_SUFFIX = re.compile(r"_(bucket|sum|count)$")


def _documented() -> dict[str, str]:
    """Metric -> the rest of its line in docs/metrics.md."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    return dict(re.findall(r"^\| `(\w+)` \|(.*)$", page, re.MULTILINE))


def _expressions() -> list[str]:
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text())
    board = json.loads((MONITORING / "dashboard.json").read_text())
    found = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    found += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return found


@pytest.mark.parametrize("expression", _expressions())
def test_an_expression_names_only_what_exists(expression: str) -> None:
    documented = _documented()
    names = re.findall(r"frontdesk_\w+", expression)
    assert names
    for name in names:
        line = documented.get(name)
        if line is None:  # a part of a histogram
            line = documented[_SUFFIX.sub("", name)]
            assert "histogram" in line, name
        else:
            assert "histogram" not in line, f"{name} needs _bucket, _sum or _count"
        if line.lstrip().startswith("counter"):
            assert re.search(rf"(rate|increase)\({name}", expression), f"{name} only ever grows"
    for grouped in re.findall(r"by \(([\w, ]+)\)", expression):
        for label in grouped.replace(" ", "").split(","):
            told = " ".join(documented[_SUFFIX.sub("", n)] for n in names)
            assert label == "le" or f"`{label}`" in told, label
    for limit in re.findall(r'limit="(\w+)"', expression):
        assert limit in Settings.model_fields
    for outcome in re.findall(r'outcome="(\w+)"', expression):
        assert outcome in OUTCOMES


def test_alerts_say_what_is_wrong() -> None:
    rules = yaml.safe_load((MONITORING / "rules.yaml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert re.fullmatch(r"Frontdesk[A-Z]\w+", rule["alert"])
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert rule["annotations"]["summary"].endswith((".", "?"))


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len({panel["id"] for panel in panels}) == len(panels)
