"""The training page: preview, start once, watch, reload, cancel, history."""

import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.conftest import Console, named, texts
from tests.ui.fake_api import NOW, World


def open_counted(console: Console, user: str = "ada") -> AppTest:
    """The page once its data is counted."""
    return when_counted(console("training", user=user))


def when_counted(at: AppTest) -> AppTest:
    if at.session_state["training_preview"].pending:
        assert at.session_state["training_preview"].done.wait(20)
        at = at.run()
    assert not at.exception
    return at


def press_start(at: AppTest) -> AppTest:
    return named(at.button, "Start training").click().run()


def bar(at: AppTest) -> str:
    return str(at.main.get("progress")[0].text)


def test_the_preview_shows_what_a_run_would_learn(console: Console) -> None:
    at = open_counted(console, user="rae")
    shown = {metric.label: metric.value for metric in at.metric}
    assert shown["Dialogues"] == "412"
    assert shown["Tokens"] == "182,340"
    assert shown["Corrections"] == "5"
    said = texts(at)
    assert "EMAIL 31" in said
    assert "I am Jo Doe, jo@example.com" in said
    assert "I am [NAME], [EMAIL]" in said


def test_a_reviewer_cannot_start_a_run(console: Console) -> None:
    at = console("training", user="rae")
    assert "Administrators start training runs." in texts(at)
    assert not at.number_input


def test_the_settings_reach_the_server(console: Console, world: World) -> None:
    at = console("training")
    named(at.number_input, "Epochs").set_value(2.0)
    named(at.number_input, "LoRA rank").set_value(8)
    named(at.number_input, "Most steps").set_value(20)
    at.checkbox[0].check()
    at = press_start(at)
    assert not at.exception
    [run] = world.runs
    assert run["settings"] == {
        "epochs": 2.0, "learning_rate": 0.001, "rank": 8, "max_steps": 20, "auto_promote": True,
    }  # fmt: skip
    assert "A training run is going on" in texts(at)


def test_the_form_of_a_started_run_is_gone(console: Console, world: World) -> None:
    """So a second click hits nothing; `test_browser` does it with a real mouse."""
    at = console("training")
    form = named(at.button, "Start training").form_id
    at = press_start(at)
    assert "Start training" not in [button.label for button in at.button]
    world.runs[0]["state"] = "completed"
    at = at.run()
    assert not at.exception
    assert named(at.button, "Start training").form_id != form
    assert len(world.runs) == 1


def test_two_clicks_before_an_answer_send_the_same_request(console: Console, world: World) -> None:
    """A second click interrupts the script after the call and before it could note that."""
    at = console("training")
    request_id = at.session_state["training_request_id"]
    press_start(at)
    at.session_state["training_request_id"] = request_id
    world.runs[0]["state"] = "completed"  # so that the server alone would allow another one
    at = at.run()
    at = press_start(at)
    assert not at.exception
    assert len(world.called("POST", "/training/runs")) == 2
    assert len(world.runs) == 1


def test_a_run_of_somebody_else_is_shown_and_not_doubled(console: Console, world: World) -> None:
    at = console("training")
    world.rival = True  # somebody else's call arrives just before ours
    at = press_start(at)
    assert not at.exception
    assert len(world.runs) == 1
    said = texts(at)
    assert "A run was going on already; no second one was started." in said
    assert "A training run is going on" in said


def test_a_reload_shows_the_run_going_on_with_its_whole_curve(
    console: Console, world: World
) -> None:
    run = world.begin_run(steps=40)
    first = console("training")
    assert bar(first).startswith("Step 40 of 120")
    for step in range(41, 61):
        world.train_step(run, step)
    again = console("training")  # a new tab: nothing of the first one's state
    assert not again.exception
    assert bar(again).startswith("Step 60 of 120")
    assert len(again.session_state["training_curve"].points) == 60
    assert {m.label: m.value for m in again.metric}["Tokens per second"] == "268"
    assert named(again.button, "Yes, cancel the run")
    assert "Start training" not in [button.label for button in again.button]


def test_the_curve_grows_by_the_new_lines_alone(console: Console, world: World) -> None:
    run = world.begin_run(steps=40)
    at = console("training")
    world.train_step(run, 41)
    at = at.run()
    asked = [body for path, body in _progress_calls(world, run["id"]) if path]
    assert asked[-1] == {"after": "41"}
    assert {"after": "40"} in asked
    assert len(at.session_state["training_curve"].points) == 41


def _progress_calls(world: World, run_id: str) -> list[tuple[str, dict[str, str]]]:
    path = f"/training/runs/{run_id}/progress"
    return [(path, body) for body in world.called("GET", path)]


def test_a_cancelled_run_moves_to_the_history(console: Console, world: World) -> None:
    world.begin_run(steps=10)
    at = console("training")
    at = named(at.button, "Yes, cancel the run").click().run()
    assert not at.exception
    assert world.runs[0]["state"] == "cancelled"
    assert "A training run is going on" not in texts(at)
    assert list(at.dataframe[-1].value["State"]) == ["cancelled"]
    assert named(at.button, "Start training")


def test_a_failed_run_says_why(console: Console, world: World) -> None:
    run = world.begin_run(steps=10)
    run.update(state="failed", error="no room left on the disk", ended_at=NOW + 1000)
    at = console("training")
    assert "The last run failed." in texts(at)
    assert "no room left on the disk" in texts(at)
    assert list(at.dataframe[-1].value["Error"]) == ["no room left on the disk"]


def test_why_no_run_can_start_is_said(console: Console, world: World) -> None:
    world.can_start = False
    at = open_counted(console)
    assert "no train_data is set and nothing is reviewed" in texts(at)
    assert "Start training" not in [button.label for button in at.button]


def test_an_unreadable_transcript_file_leaves_the_rest_of_the_page(
    console: Console, world: World
) -> None:
    world.preview_error = "the transcript file shop.jsonl is gone"
    run = world.begin_run(steps=10)
    run.update(state="cancelled", ended_at=NOW + 1000)
    at = open_counted(console)
    assert "the transcript file shop.jsonl is gone" in texts(at)
    assert "Start training" not in [button.label for button in at.button]
    assert list(at.dataframe[-1].value["State"]) == ["cancelled"]


def test_while_a_run_goes_on_the_data_is_counted_on_demand(console: Console, world: World) -> None:
    world.begin_run(steps=10)
    at = console("training")
    assert not world.called("GET", "/training/preview")
    at = when_counted(named(at.button, "Count again").click().run())
    assert len(world.called("GET", "/training/preview")) == 1


def test_a_server_that_goes_away_is_named(
    console: Console, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.begin_run(steps=10)
    at = console("training")
    monkeypatch.setenv("FRONTDESK_PUBLIC_URL", "http://127.0.0.1:9")
    at = at.run()
    assert not at.exception
    assert "http://127.0.0.1:9" in texts(at)
    assert "Try again" in [button.label for button in at.button]


def test_a_run_that_ends_while_watched_redraws_the_page(console: Console, world: World) -> None:
    """What the fragment does two seconds later: it sees the end and redraws everything."""
    run = world.begin_run(steps=10)
    at = console("training")
    run.update(state="completed", version_id="v5", ended_at=NOW + 1000)
    at = at.run()
    assert not at.exception
    assert "A training run is going on" not in texts(at)
    assert list(at.dataframe[-1].value["Version"]) == ["v5"]


def test_the_page_does_not_wait_for_the_count(console: Console, world: World) -> None:
    world.counted.clear()
    run = world.begin_run(steps=10)
    run.update(state="cancelled", ended_at=NOW + 1000)
    try:
        at = console("training")
        assert "Reading the transcripts and reviews" in texts(at)
        assert not at.metric
        assert list(at.dataframe[-1].value["State"]) == ["cancelled"]
        assert named(at.button, "Start training")
        at = at.switch_page("views/models.py").run()
        at = at.switch_page("views/training.py").run()  # leaving and coming back
        assert "Reading the transcripts and reviews" in texts(at)
        assert len(world.called("GET", "/training/preview")) == 1
    finally:
        world.counted.set()
    at = when_counted(at.run())
    assert {metric.label: metric.value for metric in at.metric}["Dialogues"] == "412"
    assert len(world.called("GET", "/training/preview")) == 1


def test_who_hurries_starts_without_the_count(console: Console, world: World) -> None:
    world.counted.clear()
    try:
        at = press_start(console("training"))
        assert not at.exception
        assert len(world.runs) == 1
        assert "A training run is going on" in texts(at)
    finally:
        world.counted.set()


def test_a_run_that_never_took_a_step_has_no_steps(console: Console, world: World) -> None:
    world.begin_run(steps=10).update(state="cancelled", ended_at=NOW + 1000)
    world.begin_run(total=0).update(state="cancelled", ended_at=NOW + 1000)
    assert list(console("training").dataframe[-1].value["Steps"]) == ["–", "10 of 120"]
