"""Versions, their evidence, promotion and the way back."""

from streamlit.testing.v1 import AppTest

from tests.ui.conftest import Console, named, texts
from tests.ui.fake_api import World


def looking_at(console: Console, version: str, user: str = "ada") -> AppTest:
    at = console("models", user=user)
    return at.selectbox(key="models_version").select(version).run()


def test_versions_stand_next_to_each_other(console: Console) -> None:
    at = console("models")
    table = at.dataframe[0].value
    assert list(table["Version"]) == ["v4", "v3", "v2", "v1", "base"]
    assert list(table["State"]) == ["candidate", "candidate", "live", "retired", "retired"]
    assert list(table["Rule"]) == ["refused", "passed", "passed", "passed", ""]
    assert table["Perplexity"][0] == "2.10"
    assert table["Perplexity"][4] == "–"
    assert not [name for name in table.columns if name.startswith("…")]


def test_a_candidate_is_compared_with_live_and_base(console: Console) -> None:
    at = looking_at(console, "v4")
    table = at.dataframe[1].value.set_index("Measure")
    assert list(table.columns[:3]) == ["v4", "live then", "base"]
    assert list(table.loc["Perplexity"][:4]) == ["2.10", "2.20", "8.31", "▲ better"]
    assert table.loc["Seconds per reply"].iloc[-1] == ""
    assert "Surprise at what agents really wrote" in texts(at)
    assert list(table.loc["Stop rate"][:4]) == ["41.0%", "98.0%", "71.0%", "▼ worse"]
    assert "stop rate 41.0% is below 95.0%" in texts(at)


def test_a_version_without_a_report_says_so(console: Console, world: World) -> None:
    version = next(v for v in world.versions if v["id"] == "v1")
    version.update(report=None, metrics={}, decision={"passed": False, "reasons": ["it is gone"]})
    said = texts(looking_at(console, "v1"))
    assert "This version has no report" in said
    assert "The report does not pass." in said
    assert "it is gone" in said


def test_the_base_model_is_not_blamed_for_having_no_report(console: Console, world: World) -> None:
    world.versions[:] = [v for v in world.versions if v["id"] == "base"]
    world.versions[0]["state"] = "live"
    world.history[:] = world.history[:1]
    at = looking_at(console, "base")
    said = texts(at)
    assert "The base model has no report and needs none" in said
    assert not at.warning
    assert "the bare base model has no report" not in said
    assert "Roll back now" not in [button.label for button in at.button]


def test_promotion_needs_a_reason_and_then_happens(console: Console, world: World) -> None:
    at = looking_at(console, "v3")
    at = named(at.button, "Promote to live").click().run()
    assert "Give a reason" in texts(at)
    assert world.live() == "v2"
    named(at.text_input, "Why now?").input("better on refunds")
    at = named(at.button, "Promote to live").click().run()
    assert not at.exception
    assert world.live() == "v3"
    assert world.history[-1]["reason"] == "better on refunds"
    assert list(at.dataframe[-1].value["Live since then"]) == ["v3"]


def test_a_refused_promotion_shows_why_and_can_be_overridden_with_a_reason(
    console: Console, world: World
) -> None:
    at = looking_at(console, "v4")
    named(at.text_input, "Why now?").input("I like it")
    at = named(at.button, "Promote to live").click().run()
    assert not at.exception
    assert world.live() == "v2"
    assert "The rule refused this promotion." in texts(at)
    at = named(at.button, "Promote against the rule").click().run()
    assert "Tick the box and give a reason" in texts(at)
    assert world.live() == "v2"
    named(at.checkbox, "Promote all the same; I answer for it").check()
    named(at.text_input, "Why? (recorded with your name)").input("the shop needs it today")
    at = named(at.button, "Promote against the rule").click().run()
    assert not at.exception
    assert world.live() == "v4"
    assert world.history[-1]["kind"] == "override"
    assert world.history[-1]["reason"] == "the shop needs it today"


def test_rolling_back_needs_a_reason_and_then_happens(console: Console, world: World) -> None:
    at = console("models")
    assert "v1 answers again" in texts(at)
    at = named(at.button, "Roll back now").click().run()
    assert "Give a reason" in texts(at)
    assert world.live() == "v2"
    at.text_input(key="rollback_reason").input("v2 is rude")
    at = named(at.button, "Roll back now").click().run()
    assert not at.exception
    assert world.live() == "v1"
    assert world.history[-1]["reason"] == "v2 is rude"


def test_who_is_no_administrator_may_look_only(console: Console) -> None:
    at = looking_at(console, "v3", user="guy")
    labels = [button.label for button in at.button]
    assert "Promote to live" not in labels
    assert "Roll back now" not in labels


def test_the_report_is_framed_without_scripts(console: Console) -> None:
    at = looking_at(console, "v3")
    at = at.toggle[0].set_value(True).run()
    assert not at.exception
    frame = at.get("iframe")[0].proto.srcdoc
    assert '<iframe sandbox=""' in frame
    assert "<script>" not in frame  # only escaped, inside the inner frame's srcdoc
    assert "Report of v3" in frame


def test_an_empty_registry_says_what_to_do(console: Console, world: World) -> None:
    world.versions.clear()
    at = console("models")
    assert "There is no version yet." in texts(at)
