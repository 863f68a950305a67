"""A console in a test: the real scripts under AppTest, against a server that answers as the
contract says."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import ui.app
from tests.ui.fake_api import PASSWORD, ROLES, World, build, populate, serving
from ui.vault import KeptLogin, open_vault

APP = Path(ui.app.__file__)
Console = Callable[..., AppTest]


@pytest.fixture
def world() -> World:
    return populate(World())


@pytest.fixture
def server(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    st.cache_resource.clear()  # the vault and the HTTP clients of earlier tests
    with serving(build(world)) as address:
        monkeypatch.setenv("FRONTDESK_PUBLIC_URL", address)
        yield address
    st.cache_resource.clear()


def start() -> AppTest:
    """A fresh browser tab."""
    return AppTest.from_file(str(APP), default_timeout=30).run()


def fill_login(at: AppTest, user: str, password: str = PASSWORD) -> AppTest:
    at.text_input[0].input(user)
    at.text_input[1].input(password)
    return named(at.button, "Log in").click().run()


@pytest.fixture
def console(server: str) -> Console:
    """`console(page, user)`: a tab of the logged-in user with that page open."""

    def open_page(page: str = "conversations", user: str = "ada", **query: str) -> AppTest:
        at = AppTest.from_file(str(APP), default_timeout=30)
        at.session_state["login_key"] = _kept_login(user)
        at = at.run()
        for name, value in query.items():
            at.query_params[name] = value
        at = at.switch_page(f"views/{page}.py").run()
        assert not at.exception
        return at

    return open_page


def _kept_login(user: str) -> str:
    """A login that the console has kept already; `test_login` goes through the form."""
    expires = int(time.time() * 1000) + 3_600_000
    key, _ = open_vault().keep(KeptLogin(user, user, ROLES[user], expires))
    return key


def named(elements: Any, label: str) -> Any:
    """The one element with this label."""
    found = [element for element in elements if element.label == label]
    assert len(found) == 1, f"{label!r} among {[element.label for element in elements]}"
    return found[0]


def texts(at: AppTest) -> str:
    """Everything that stands on the page, as one text."""
    parts = [*at.text, *at.caption, *at.info, *at.error, *at.warning, *at.success, *at.markdown]
    parts += [*at.title, *at.subheader]
    return "\n".join(str(part.value) for part in parts)
