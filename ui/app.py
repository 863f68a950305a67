"""The console's main script: login, navigation, sidebar. Streamlit runs it for every view."""

import json
from pathlib import Path

import streamlit as st

from ui import session
from ui.answers import Overview
from ui.api import ApiError
from ui.run_words import doing, share_of, steps_of
from ui.show import duration, escaped
from ui.vault import TICKET_HEADER

STATIC = Path(__file__).with_name("static")

# Fetches the login's cookie once. The ticket is made of [A-Za-z0-9_-] by this program.
FETCH_COOKIE = """<script>
fetch("./console/session", {{method: "POST", headers: {{{header}: {ticket}}}}});
</script>"""


def main() -> None:
    st.set_page_config(
        page_title="Frontdesk console", page_icon=str(STATIC / "icon.svg"), layout="wide"
    )
    st.html(STATIC / "console.css")
    if session.current_login() is None:
        st.navigation([st.Page(login_page, title="Log in")], position="hidden").run()
        return
    page = st.navigation(_pages())
    st.logo(str(STATIC / "logo.svg"), size="large", icon_image=str(STATIC / "icon.svg"))
    _sidebar()
    _hand_out_cookie()
    page.run()


def login_page() -> None:
    """Ask for a name and a password."""
    _, middle, _ = st.columns([1, 1.2, 1])
    with middle:
        st.space("large")
        st.image(STATIC / "logo.svg", width=220)
        st.caption("Staff console: review conversations, retrain the bot, choose what is live.")
        if notice := session.login_notice():
            st.info(notice)
        with st.form("login"):
            username = st.text_input("User name", autocomplete="username")
            password = st.text_input("Password", type="password", autocomplete="current-password")
            submitted = st.form_submit_button("Log in", type="primary", width="stretch")
        if submitted:
            _try_login(username.strip(), password)
        with st.expander("No account yet?"):
            st.write(
                "An administrator adds people on the page *Staff*. The first one is `admin`; "
                "the password is in the file `admin-password` of the server's data directory."
            )


def _try_login(username: str, password: str) -> None:
    if not username or not password:
        st.error("Enter your user name and your password.")
        return
    try:
        session.log_in(username, password)
    except ApiError as error:
        if error.login_ended:
            st.error("User name or password is wrong.")
        else:
            session.show_error(error)
        return
    st.rerun()


def _pages() -> dict[str, list[st.Page]]:
    """The pages that the role of who is logged in may open."""
    work = [
        st.Page("views/conversations.py", title="Conversations", icon=":material/forum:"),
        st.Page("views/models.py", title="Models", icon=":material/deployed_code:"),
    ]
    if session.may("reviewer"):
        work.insert(
            1, st.Page("views/training.py", title="Training", icon=":material/model_training:")
        )
        work.append(
            st.Page("views/playground.py", title="Playground", icon=":material/compare_arrows:")
        )
    pages = {"Work": work}
    if session.may("admin"):
        pages["Administration"] = [
            st.Page("views/sites.py", title="Sites", icon=":material/language:"),
            st.Page("views/data.py", title="Data", icon=":material/database:"),
            st.Page("views/staff.py", title="Staff", icon=":material/group:"),
            st.Page("views/audit.py", title="Audit", icon=":material/history:"),
        ]
    return pages


def _sidebar() -> None:
    user = session.current_user()
    with st.sidebar:
        _state_of_things()
        with st.container(border=True, gap="xsmall"):
            st.text(user.username)
            st.caption(f"Role: {user.role}")
            if st.button("Log out", icon=":material/logout:", width="stretch"):
                session.log_out()
                st.rerun()


@st.fragment(run_every="5s")
def _state_of_things() -> None:
    """What is live and what runs, whatever page is open."""
    try:
        overview = session.api().overview()
    except ApiError as error:
        session.end_if_logged_out(error)
        st.caption(":red[The server does not answer.]")
        return
    _show_state(overview)


def _show_state(overview: Overview) -> None:
    with st.container(gap=None):
        st.caption("Live version")
        st.text(overview.live_version or "none yet")
    if overview.waiting:
        st.badge(f"{overview.waiting} waiting for a person", icon=":material/hail:", color="orange")
    run = overview.active_run
    if run is None:
        return
    st.caption("Training run")
    st.text(doing(run))
    left = f", {duration(run.seconds_left)} left" if run.seconds_left is not None else ""
    st.progress(share_of(run), text=f"{escaped(steps_of(run))}{left}")


def _hand_out_cookie() -> None:
    if ticket := session.open_ticket():
        script = FETCH_COOKIE.format(header=json.dumps(TICKET_HEADER), ticket=json.dumps(ticket))
        st.html(script, unsafe_allow_javascript=True)


if __name__ == "__main__":
    main()
