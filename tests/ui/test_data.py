"""The pages for data rights: exports, a person, receipts, holds, and a site's retention."""

from streamlit.testing.v1 import AppTest

from tests.ui.conftest import Console, named, texts
from tests.ui.fake_api import World


def find(console: Console, visitor: str = "visitor-1") -> AppTest:
    at = console("data")
    [field] = [one for one in at.text_input if one.key == "person_value"]
    field.input(visitor)
    return named(at.button, "Find").click().run()


def test_a_person_is_erased_after_typing_the_id(console: Console, world: World) -> None:
    at = find(console)
    assert "30 conversations" in texts(at)
    assert "v2 (live): 2 conversations" in texts(at)
    assert "v1 (retired): not known how much" in texts(at)
    [reason] = [one for one in at.text_input if one.placeholder == "who asked, when"]
    reason.input("she asked")
    typed = next(one for one in at.text_input if one.label.startswith("Type "))
    typed.input("visitor")
    at = named(at.button, "Erase this person").click().run()
    assert "nothing was erased" in texts(at)
    assert world.erasures == []
    next(one for one in at.text_input if one.label.startswith("Type ")).input("visitor-1")
    at = named(at.button, "Erase this person").click().run()
    assert not at.exception
    assert "60 events, 1 review, 2 training dialogues, 1 export" in texts(at)
    [erased] = world.erasures
    assert (erased["visitor"], erased["reason"]) == ("visitor-1", "she asked")


def test_nobody_and_nothing_are_told(console: Console) -> None:
    at = find(console, "v-nobody")
    assert "there is nothing of a visitor v-nobody" in texts(at)
    at = find(console, "  ")
    assert "Say who it is." in texts(at)


def test_a_hold_hides_the_erasing_and_is_lifted(console: Console, world: World) -> None:
    at = find(console)
    [reason] = [one for one in at.text_input if one.placeholder == "which matter"]
    reason.input("case 12")
    at = named(at.button, "Place the hold").click().run()
    assert not at.exception
    assert world.holds[0]["reason"] == "case 12"
    assert "Erase this person" not in [button.label for button in at.button]
    at.text_input(key="why-hold-0").input("settled")
    at = at.button(key="lift-hold-0").click().run()
    assert world.holds[0]["lift_reason"] == "settled"


def test_an_export_is_asked_for_and_deleted(console: Console, world: World) -> None:
    at = console("data")
    at.selectbox(key="export_format").select("csv")
    at.checkbox[0].check()
    at = named(at.button, "Make the export").click().run()
    assert not at.exception
    [made] = world.called("POST", "/exports")
    assert (made["format"], made["redact"]) == ("csv", True)
    assert "export-0.csv" in texts(at)
    at = at.button(key="delete-export-0").click().run()
    assert world.exports[0]["state"] == "deleted"


def test_retention_of_a_site_is_changed(console: Console, world: World) -> None:
    at = console("sites")
    assert "3 conversations will be deleted" in texts(at)
    named(at.number_input, "Delete everywhere, days").set_value(365)
    at = named(at.button, "Save retention").click().run()
    assert not at.exception
    assert world.retention["demo"] == {
        "idle_close_hours": None,
        "log_days": None,
        "record_days": 365,
    }


def test_the_page_is_for_administrators(console: Console) -> None:
    at = console("conversations", "rae")
    assert "Data" not in texts(at)
