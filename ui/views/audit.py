"""Audit: who did what, when and why."""

import streamlit as st

from ui import session
from ui.answers import AuditItem
from ui.show import browser_zone, when
from ui.tables import draw, in_words

CURSORS = "audit_cursors"
WIDTHS = {"When": 130, "Who": 90, "What": 140, "Of": 165, "Why": 215, "More": 260}


def page() -> None:
    st.title("Audit", anchor=False)
    st.caption(
        "Every promotion, run, review, exclusion and account change. Nothing is ever removed."
    )
    cursors: list[str | None] = st.session_state.setdefault(CURSORS, [None])
    with session.asking():
        found = session.api().audit(cursors[-1])
    if not found.items and len(cursors) == 1:
        st.info("Nothing was done yet.")
        return
    _table(found.items)
    with st.container(horizontal=True):
        newer = st.button("Newer", icon=":material/chevron_left:", disabled=len(cursors) == 1)
        older = st.button(
            "Older", icon=":material/chevron_right:", disabled=found.next_cursor is None
        )
    if newer:
        cursors.pop()
    elif older:
        cursors.append(found.next_cursor)
    if newer or older:
        st.rerun()


def _table(items: list[AuditItem]) -> None:
    zone = browser_zone()
    rows = [
        {
            "When": when(item.at, zone),
            "Who": item.actor,
            "What": item.action,
            "Of": item.subject,
            "Why": item.reason,
            "More": in_words(item.data),
        }
        for item in items
    ]
    draw(rows, WIDTHS, "More", height="content", alt="Audit, the newest first")


if __name__ == "__main__":
    page()
