"""Staff: who may log in, and as what."""

import pandas as pd
import streamlit as st

from ui import session
from ui.answers import StaffMember
from ui.show import when

ROLES = {
    "agent": "agent: reads conversations, answers at the desk",
    "reviewer": "reviewer: also rates, corrects and compares versions",
    "admin": "admin: also trains, promotes, and manages sites and staff",
}


def page() -> None:
    st.title("Staff", anchor=False)
    with session.asking():
        staff = session.api().staff()
    _table(staff)
    left, right = st.columns(2, gap="large")
    with left:
        _add()
    with right:
        _remove(staff)


def _table(staff: list[StaffMember]) -> None:
    if not staff:
        st.info("No accounts yet. Add one for everybody who works here; do not share one.")
        return
    rows = [
        {"User name": one.username, "Role": one.role, "Since": when(one.created_at)}
        for one in staff
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True)


def _add() -> None:
    st.subheader("Add a person", anchor=False)
    with st.form("add_staff"):
        username = st.text_input("User name", autocomplete="off")
        password = st.text_input("First password", type="password", autocomplete="new-password")
        role = st.selectbox("Role", list(ROLES), format_func=lambda name: ROLES[name])
        submitted = st.form_submit_button("Add", type="primary")
    if submitted and not (username.strip() and password):
        st.error("Enter a user name and a password.")
    elif submitted:
        with session.asking():
            session.api().add_staff(username.strip(), password, role)
        st.toast("Added.")
        st.rerun()


def _remove(staff: list[StaffMember]) -> None:
    st.subheader("Remove a person", anchor=False)
    me = session.current_user().username
    others = [one.username for one in staff if one.username != me]
    if not others:
        st.caption("There is nobody to remove but you.")
        return
    with st.form("remove_staff"):
        username = st.selectbox("User name", others)
        sure = st.checkbox("Yes, this person may not log in any more")
        submitted = st.form_submit_button("Remove")
    if submitted and not sure:
        st.error("Tick the box if you are sure.")
    elif submitted:
        with session.asking():
            session.api().remove_staff(username)
        st.toast("Removed.")
        st.rerun()


if __name__ == "__main__":
    page()
