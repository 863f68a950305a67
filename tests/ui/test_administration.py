"""Sites, staff and audit."""

from tests.ui.conftest import Console, named, texts
from tests.ui.fake_api import World
from ui.views.sites import DAYS


def test_a_site_is_changed(console: Console, world: World) -> None:
    at = console("sites")
    origins = named(at.text_area, "Origins that may embed the widget, one a line")
    assert origins.value == "http://localhost:*"
    origins.input("https://a.example\n\n https://b.example ")
    at = named(at.button, "Save").click().run()
    assert not at.exception
    assert world.sites["demo"]["origins"] == ["https://a.example", "https://b.example"]
    assert world.sites["demo"]["title"] == "Juniper & Pine"
    assert 'data-site="demo"' in at.code[0].value


def test_how_the_chat_of_a_site_behaves(console: Console, world: World) -> None:
    at = console("sites")
    assert named(at.text_area, "Quick replies, one a line").value == "Where is my order?"
    named(at.text_area, "Quick replies, one a line").input("Delivery\n\nReturns")
    named(at.text_input, "Time zone").input("Europe/Berlin")
    named(at.text_input, "Monday").input("09:00 - 12:00, 13:00-17:30")
    named(at.text_area, "Holidays, one a line").input("2026-12-25")
    named(at.text_area, "Hosts that links may lead to, one a line").input("shop.example")
    named(at.checkbox, "Ask for consent before anything is stored or sent").check()
    at = named(at.button, "Save").click().run()
    assert not at.exception
    assert world.sites["demo"]["widget"] == {
        "quick_replies": ["Delivery", "Returns"],
        "timezone": "Europe/Berlin",
        "hours": {"mon": ["09:00-12:00", "13:00-17:30"]},
        "holidays": ["2026-12-25"],
        "link_hosts": ["shop.example"],
        "consent": True,
        "privacy_url": "",
        "offline_form": True,
    }


def test_a_site_is_added_and_needs_a_name(console: Console, world: World) -> None:
    at = console("sites")
    at = at.selectbox(key="site_choice").select("New site").run()
    at = named(at.button, "Save").click().run()
    assert "Name: give the site one" in texts(at)
    named(at.text_input, "Name").input("shop")
    at = named(at.button, "Save").click().run()
    assert not at.exception
    assert world.sites["shop"]["origins"] == []


def test_the_days_follow_each_other(console: Console) -> None:
    """The tab key goes through the fields in this order."""
    labels = [field.label for field in console("sites").text_input]
    assert [label for label in labels if label in DAYS.values()] == list(DAYS.values())


def test_a_site_that_is_refused_names_the_field_beside_the_button(
    console: Console, world: World
) -> None:
    world.site_problem = (
        "origins: 'shop' is not an origin; widget.timezone: Value error, 'Mars' is no time zone"
    )
    at = console("sites")
    at = named(at.button, "Save").click().run()
    assert not at.exception
    said = [element.value for element in at.text]
    assert "Origins: 'shop' is not an origin" in said
    assert "Time zone: 'Mars' is no time zone" in said
    [error] = at.error
    assert error.value == "Not saved."
    drawn = list(at.main)
    save = drawn.index(named(at.button, "Save"))
    assert save - 5 < drawn.index(error) < save
    assert at.code  # the rest of the page is still there
    world.site_problem = ""
    at = named(at.button, "Save").click().run()
    assert not at.error


def test_a_person_is_added(console: Console, world: World) -> None:
    at = console("staff")
    at = named(at.button, "Add").click().run()
    assert "Enter a user name and a password." in texts(at)
    at.text_input[0].input("kim")
    named(at.text_input, "First password").input("long enough 1")
    at.selectbox[0].select("reviewer")
    at = named(at.button, "Add").click().run()
    assert not at.exception
    assert world.staff[-1]["username"] == "kim"
    assert world.staff[-1]["role"] == "reviewer"
    assert "long enough 1" not in texts(at)


def test_a_person_is_removed_but_not_oneself(console: Console, world: World) -> None:
    at = console("staff")
    choice = at.selectbox[1]
    assert "ada" not in choice.options
    choice.select("guy")
    at = named(at.button, "Remove").click().run()
    assert "Tick the box if you are sure." in texts(at)
    at.checkbox[0].check()
    at = named(at.button, "Remove").click().run()
    assert not at.exception
    assert [one["username"] for one in world.staff] == ["ada", "rae"]


def test_the_audit_is_paged(console: Console, world: World) -> None:
    at = console("audit")
    assert len(at.dataframe[0].value) == 50
    at = named(at.button, "Older").click().run()
    assert not at.exception
    assert len(at.dataframe[0].value) == 10
    at = named(at.button, "Newer").click().run()
    assert len(at.dataframe[0].value) == 50


def test_an_empty_audit_says_so(console: Console, world: World) -> None:
    world.audit.clear()
    assert "Nothing was done yet." in texts(console("audit"))
