"""Making a version live, against the rule if need be, and going back."""

import streamlit as st

from ui import session
from ui.answers import VersionDetail
from ui.api import ApiError

REFUSED = "promotion_refused"  # {version id: reasons} in the session


def show_promotion(detail: VersionDetail) -> None:
    """The form that promotes; after a refusal the one that overrides."""
    if detail.state == "live":
        st.caption("This version is live.")
        return
    refused = st.session_state.setdefault(REFUSED, {})
    if detail.id in refused:
        stated = detail.decision.reasons  # they stand above this form already
        _override(detail.id, [reason for reason in refused[detail.id] if reason not in stated])
        return
    with st.form(f"promote-{detail.id}", border=False):
        reason = st.text_input("Why now?", placeholder="e.g. better on refunds, looked at by me")
        submitted = st.form_submit_button(
            "Promote to live", type="primary", icon=":material/rocket_launch:", width="stretch"
        )
    if submitted:
        _promote(detail.id, reason.strip(), override=False)


def _override(version_id: str, reasons: list[str]) -> None:
    st.error("The rule refused this promotion.", icon=":material/block:")
    for reason in reasons:
        st.text(f"• {reason}")
    with st.form(f"override-{version_id}", border=False):
        sure = st.checkbox("Promote all the same; I answer for it")
        reason = st.text_input("Why? (recorded with your name)")
        submitted = st.form_submit_button("Promote against the rule", width="stretch")
    if submitted and not (sure and reason.strip()):
        st.error("Tick the box and give a reason: both are needed to go against the rule.")
    elif submitted:
        _promote(version_id, reason.strip(), override=True)


def _promote(version_id: str, reason: str, override: bool) -> None:
    if not reason:
        st.error("Give a reason: it is recorded with your name.")
        return
    refused: dict[str, list[str]] = st.session_state[REFUSED]
    try:
        session.api().promote(version_id, reason, override)
    except ApiError as error:
        session.end_if_logged_out(error)
        if error.code != "promotion_refused":
            session.show_error(error)
            return
        reasons = error.data.get("reasons") or [error.message]
        refused[version_id] = [str(reason) for reason in reasons]
        st.rerun()
    refused.pop(version_id, None)
    st.toast(f"{version_id} is live from the next message on.")
    st.rerun()


def show_roll_back(target: str) -> None:
    """Back to ``target``, which was live before; again goes further back."""
    with st.popover("Roll back", icon=":material/undo:"), st.form("rollback"):
        st.text(f"{target} answers again, from each chat's next message on.")
        reason = st.text_input("Why?", key="rollback_reason")
        submitted = st.form_submit_button("Roll back now", type="primary")
    if submitted and not reason.strip():
        st.error("Give a reason: it is recorded with your name.")
    elif submitted:
        with session.asking():
            version = session.api().roll_back(reason.strip())
        st.toast(f"{version.id} is live again.")
        st.rerun()
