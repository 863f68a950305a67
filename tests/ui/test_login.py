"""Logging in and out, and what survives a reload."""

import pytest

from tests.ui.conftest import Console, fill_login, named, start, texts
from tests.ui.fake_api import World
from ui import session
from ui.vault import open_vault


def test_a_right_password_opens_the_console(server: str) -> None:
    at = fill_login(start(), "ada")
    assert not at.exception
    assert "ada" in [text.value for text in at.sidebar.text]
    assert at.title[0].value == "Conversations"


def test_a_wrong_password_says_so_and_stays(server: str) -> None:
    at = fill_login(start(), "ada", "wrong")
    assert not at.exception
    assert "User name or password is wrong." in texts(at)
    assert not at.sidebar.text


def test_an_empty_form_asks_nothing_of_the_server(server: str, world: World) -> None:
    at = named(start().button, "Log in").click().run()
    assert "Enter your user name and your password." in texts(at)
    assert not world.called("POST", "/login")


def test_a_server_that_is_away_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTDESK_PUBLIC_URL", "http://127.0.0.1:9")
    at = fill_login(start(), "ada")
    assert not at.exception
    said = texts(at)
    assert "http://127.0.0.1:9" in said
    assert "frontdesk up" in said


def test_a_reload_finds_the_login_by_its_cookie(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fill_login(start(), "ada")
    key = first.session_state["login_key"]
    monkeypatch.setattr(session, "browser_key", lambda: key)
    again = start()  # a new socket: its session state is empty
    assert not again.exception
    assert "ada" in [text.value for text in again.sidebar.text]


def test_after_logging_out_the_cookie_opens_nothing(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = fill_login(start(), "ada")
    key = at.session_state["login_key"]
    monkeypatch.setattr(session, "browser_key", lambda: key)
    at = named(at.sidebar.button, "Log out").click().run()
    assert "You are logged out." in texts(at)
    assert open_vault().find(key) is None
    assert not start().sidebar.text


def test_a_made_up_cookie_opens_nothing(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "browser_key", lambda: "made-up")
    at = start()
    assert not at.exception
    assert not at.sidebar.text


@pytest.mark.parametrize("page", ["conversations", "training", "models", "playground", "audit"])
def test_an_ended_login_leads_back_to_the_login_page(
    console: Console, world: World, page: str
) -> None:
    at = console(page)
    world.tokens_valid = False
    at = at.run()
    assert not at.exception
    assert "Your login has ended. Please log in again." in texts(at)
    assert [button.label for button in at.button] == ["Log in"]


@pytest.mark.parametrize(
    ("user", "pages"),
    [
        ("guy", {"conversations", "models"}),
        ("rae", {"conversations", "models", "training", "playground"}),
    ],
)
def test_a_role_sees_only_its_pages(console: Console, user: str, pages: set[str]) -> None:
    at = console(user=user)
    others = {"training", "playground", "sites", "staff", "audit"} - pages
    for page in pages:
        assert not at.switch_page(f"views/{page}.py").run().exception
    for page in others:
        with pytest.raises(ValueError, match="navigation page"):
            at.switch_page(f"views/{page}.py")


def test_the_sidebar_shows_what_is_live_and_what_runs(console: Console, world: World) -> None:
    world.begin_run(steps=30)
    at = console()
    assert "v2" in [text.value for text in at.sidebar.text]
    assert "1 waiting for a person" in "".join(m.value for m in at.sidebar.markdown)
    assert "Step 30 of 120" in at.sidebar.get("progress")[0].text


def test_the_sidebar_survives_a_server_that_goes_away(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = console()
    monkeypatch.setenv("FRONTDESK_PUBLIC_URL", "http://127.0.0.1:9")
    at = at.run()
    assert not at.exception
    assert "The server does not answer." in "".join(c.value for c in at.sidebar.caption)
    assert "The server is away" in texts(at)
