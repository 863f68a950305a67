"""Sites, staff and audit."""

from tests.ui.conftest import Console, named, texts
from tests.ui.fake_api import World


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


def test_a_site_is_added_and_needs_a_name(console: Console, world: World) -> None:
    at = console("sites")
    at = at.selectbox(key="site_choice").select("New site ...").run()
    at = named(at.button, "Save").click().run()
    assert "Give the site a name." in texts(at)
    named(at.text_input, "Name").input("shop")
    at = named(at.button, "Save").click().run()
    assert not at.exception
    assert world.sites["shop"]["origins"] == []


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
