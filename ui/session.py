"""Who is logged in, and how a page asks the server."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import streamlit as st

from ui.address import server_url
from ui.answers import Role, User
from ui.api import AdminApi, ApiError, open_client
from ui.vault import COOKIE, KeptLogin, open_vault

RANK: dict[str, int] = {"agent": 0, "reviewer": 1, "admin": 2}

_LOGIN = "login"  # names in st.session_state
_KEY = "login_key"
_TICKET = "login_ticket"
_NOTICE = "login_notice"


@st.cache_resource(show_spinner=False, on_release=httpx.Client.close)
def _client(base_url: str) -> httpx.Client:
    return open_client(base_url)


def browser_key() -> str:
    """What the browser's cookie holds; "" without one. Read from the socket's handshake."""
    return str(st.context.cookies.get(COOKIE, ""))


def current_login() -> KeptLogin | None:
    """The login of this browser session, taken up again from its cookie after a reload."""
    key = st.session_state.get(_KEY) or ("" if _NOTICE in st.session_state else browser_key())
    login = open_vault().find(key) if key else None
    if login is None:
        st.session_state.pop(_LOGIN, None)
        if st.session_state.pop(_KEY, None):
            st.session_state[_NOTICE] = "Your login has ended. Please log in again."
        return None
    st.session_state[_KEY] = key
    st.session_state[_LOGIN] = login
    return login


def log_in(username: str, password: str) -> None:
    """Log in at the server and keep the login. Raises ApiError."""
    answer = AdminApi(_client(server_url())).login(username, password)
    kept = KeptLogin(
        token=answer.token,
        username=answer.user.username,
        role=answer.user.role,
        expires_at=answer.expires_at,
    )
    key, ticket = open_vault().keep(kept)
    st.session_state.pop(_NOTICE, None)
    st.session_state[_KEY] = key
    st.session_state[_TICKET] = ticket


def log_out(notice: str = "You are logged out.") -> None:
    """Forget the login here and in the vault, so that the browser's cookie opens nothing."""
    open_vault().forget(st.session_state.get(_KEY, "") or browser_key())
    for name in list(st.session_state):
        del st.session_state[name]
    st.session_state[_NOTICE] = notice


def login_notice() -> str:
    """Why the login page is shown, if there is something to say."""
    return str(st.session_state.get(_NOTICE, ""))


def open_ticket() -> str:
    """The ticket with which this browser has yet to fetch its cookie; "" when it has."""
    ticket = st.session_state.get(_TICKET, "")
    return ticket if ticket and open_vault().ticket_open(ticket) else ""


def current_user() -> User:
    login: KeptLogin = st.session_state[_LOGIN]
    return User.model_validate({"username": login.username, "role": login.role})


def may(role: Role) -> bool:
    """Whether who is logged in has at least ``role``."""
    return RANK[current_user().role] >= RANK[role]


def api() -> AdminApi:
    """The server, as who is logged in."""
    login: KeptLogin = st.session_state[_LOGIN]
    return AdminApi(_client(server_url()), login.token)


@contextmanager
def asking() -> Iterator[None]:
    """Around every call: an ended login leads to the login page, any other error is shown in
    words and ends the page (or fragment) there."""
    try:
        yield
    except ApiError as error:
        end_if_logged_out(error)
        show_error(error)
        st.stop()


def end_if_logged_out(error: ApiError) -> None:
    """To the login page if the server does not know the login any more."""
    if error.login_ended:
        log_out("Your login has ended. Please log in again.")
        st.rerun()


def show_error(error: ApiError) -> None:
    """The error as a sentence; its text is shown as text, whatever is in it."""
    titles = {
        "unreachable": "The server is away",
        "timeout": "The server is slow",
        "not_allowed": "Your role may not do this",
        "not_found": "Not found",
    }
    with st.container(border=True, key=f"error-{abs(hash(error.message))}"):
        st.error(titles.get(error.code, "That did not work"), icon=":material/error:")
        st.text(error.message)
        if error.code in ("unreachable", "timeout"):
            st.button("Try again", icon=":material/refresh:", key=f"again-{hash(error.message)}")
