"""Words for what happens in conversations and runs."""

import json
from typing import Any, get_args

import pytest

from chatbot.conversation.events import EventType
from tests.ui.conftest import Console, texts
from tests.ui.fake_api import NOW, SCRIPT, World
from ui.answers import Event, Run
from ui.event_words import line_of
from ui.run_words import doing, share_of, steps_of


def event(kind: str, **data: Any) -> Event:
    return Event.model_validate({"offset": 1, "type": kind, "at": NOW, **data})


@pytest.mark.parametrize(
    ("status", "reason", "actor", "agent", "line"),
    [
        ("waiting", "the visitor asked for a person", "visitor", "",
         "Waiting for a person: the visitor asked for a person"),
        ("human", "claimed", "guy", "guy", "guy took it over"),
        ("human", "transferred", "guy", "rae", "guy handed it to rae"),
        ("human", "knows ferns", "guy", "rae", "rae took it over: knows ferns"),
        ("bot", "released", "guy", "", "guy gave it back to the bot"),
        ("closed", "idle", "system", "", "Closed, since nothing was written for long"),
        ("closed", "closed", "guy", "", "Closed by guy"),
        ("closed", "refunded", "guy", "", "Closed by guy: refunded"),
        ("closed", "", "visitor", "", "Closed by the visitor"),
    ],
)  # fmt: skip
def test_a_change_of_status_in_words(
    status: str, reason: str, actor: str, agent: str, line: str
) -> None:
    changed = event("status.changed", status=status, reason=reason, actor=actor, agent=agent)
    assert line_of(changed) == line


def test_other_events_in_words() -> None:
    assert line_of(event("tags.changed", tags=["refund"], actor="guy")) == (
        "guy set the tags: refund"
    )
    assert line_of(event("tags.changed", tags=[], actor="guy")) == "guy took the tags off"
    assert line_of(event("channel.opened", channel="call")) == "A phone call"
    described = event("visitor.described", facts={"plan": "gold"}, source="page")
    assert line_of(described) == "About the visitor: plan gold (not checked)"


@pytest.mark.parametrize("kind", [*get_args(EventType), "something.new"])
def test_no_event_is_shown_by_its_type(kind: str) -> None:
    assert kind not in line_of(event(kind, actor="guy"))


def test_the_machinery_is_not_shown(console: Console, world: World) -> None:
    world.events["c-001"].append(
        {"offset": 3, "type": "suggestions.shown", "at": NOW, "actor": "guy", "drafts": []}
    )
    world.events["c-001"].append(
        {"offset": 4, "type": "tags.changed", "at": NOW, "actor": "guy", "tags": [SCRIPT]}
    )
    at = console(conversation="c-001")
    said = texts(at)
    assert "suggestions" not in said
    assert "guy set the tags" in said
    assert SCRIPT not in said  # escaped: a tag is no Markdown


def run(**given: Any) -> Run:
    values: dict[str, Any] = {
        "id": "run-1", "state": "running", "requested_by": "ada", "settings": {}, "step": 0,
        "total_steps": 0, "loss": None, "tokens_per_s": None, "seconds_left": None, "phase": "",
        "version_id": "", "error": "", "cancel_requested": False, "created_at": NOW,
        "started_at": None, "ended_at": None, **given,
    }  # fmt: skip
    return Run.model_validate(values)


@pytest.mark.parametrize(
    ("given", "heading", "steps", "share"),
    [
        ({"state": "queued"}, "Waiting for the trainer", "Starting", 0.0),
        ({}, "Starting", "Starting", 0.0),
        ({"phase": "prepare"}, "Preparing the data", "Starting", 0.0),
        ({"phase": "train", "step": 44, "total_steps": 176}, "Learning from the dialogues",
         "Step 44 of 176", 0.25),
        ({"phase": "publish"}, "Storing the version", "Storing the version", 0.0),
    ],
)  # fmt: skip
def test_how_far_a_run_is(given: dict[str, Any], heading: str, steps: str, share: float) -> None:
    seen = run(**given)
    assert (doing(seen), steps_of(seen), share_of(seen)) == (heading, steps, share)


def test_a_run_that_begins_has_words_on_every_page(console: Console, world: World) -> None:
    world.begin_run(total=0).update(state="running")
    at = console("training")
    bars = [str(bar.text) for bar in at.get("progress")]
    assert bars == ["Starting", "Starting"]
    assert "Preparing the data" in texts(at)
    assert "Preparing the data" in [text.value for text in at.sidebar.text]


def test_the_steps_of_the_curve_are_whole(console: Console, world: World) -> None:
    world.begin_run(steps=3)
    chart = console("training").get("vega_lite_chart")[0]
    layers = json.loads(chart.proto.spec)["layer"]
    assert [layer["encoding"]["x"]["axis"]["tickMinStep"] for layer in layers] == [1, 1]
