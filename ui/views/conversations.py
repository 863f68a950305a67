"""Conversations: find them, open one, review it."""

from typing import Any

import streamlit as st

from ui import conversation_view, session
from ui.answers import ConversationItem, Page
from ui.show import STATUS_LABELS, browser_zone, plural, when
from ui.tables import WIDTH, draw
from ui.trail import Trail

PAGE_SIZE = 25
SELECTION = 34  # pixels of the boxes that select a row
WIDTHS = {
    "First message": 250, "Status": 75, "Last activity": 130, "Site": 70, "Messages": 80,
    "Rating": 74, "Reviewed": 80, "Training": 75, "Versions": 132,
}  # fmt: skip
OPEN = "conversation"  # the query parameter that names the open conversation
TRAIL = "conversations_trail"
STARS = {score: "★" * score for score in (5, 4, 3, 2, 1)}
REVIEWED = {"All": None, "To review": False, "Reviewed": True}


def page() -> None:
    trail: Trail = st.session_state.setdefault(TRAIL, Trail())
    opened = st.query_params.get(OPEN, "")
    if not opened:
        _list(trail)
        return
    if not trail.loaded:
        with session.asking():
            trail.load(_fetch(trail))
    target = conversation_view.show(opened, trail, _fetch(trail))
    if target is not None:
        if target:
            st.query_params[OPEN] = target
        else:
            st.query_params.clear()
        st.rerun()


def _fetch(trail: Trail) -> Any:
    def fetch(cursor: str | None) -> Page[ConversationItem]:
        return session.api().conversations(**trail.filters, cursor=cursor, limit=PAGE_SIZE)

    return fetch


def _list(trail: Trail) -> None:
    st.title("Conversations", anchor=False)
    filters = _filters()
    if filters != trail.filters:
        trail.start_over(filters)
    with session.asking():
        found = trail.load(_fetch(trail))
    if not found.items:
        _nothing(filters, trail)
        return
    _table(found.items)
    _pager(trail, len(found.items))


def _filters() -> dict[str, Any]:
    """The filter widgets; only what is set is in the result."""
    known = _known_versions()
    with st.container(horizontal=True, vertical_alignment="bottom"):
        q = st.text_input(
            "Search", placeholder="Words in the conversation", key="filter_search", width=220,
            persist_state="session", icon=":material/search:",
        )  # fmt: skip
        status = _choice("Status", "filter_status", list(STATUS_LABELS), STATUS_LABELS)
        site = st.text_input(
            "Site", placeholder="Any", key="filter_site", width=110, persist_state="session"
        )
        version = _choice("Version", "filter_version", known, {})
        rating = _choice("Rating", "filter_rating", list(STARS), STARS)
        reviewed = st.segmented_control(
            "Review", list(REVIEWED), key="filter_reviewed", default="All", required=True,
            persist_state="session",
        )  # fmt: skip
    chosen = {
        "q": (q or "").strip(),
        "status": status,
        "site": (site or "").strip(),
        "version": version,
        "rating": rating,
        "reviewed": REVIEWED[reviewed or "All"],
    }
    return {name: value for name, value in chosen.items() if value not in (None, "")}


def _choice(label: str, key: str, options: list[Any], names: dict[Any, str]) -> Any:
    return st.selectbox(
        label,
        options,
        index=None,
        key=key,
        placeholder="Any",
        width=135,
        persist_state="session",
        format_func=lambda value: names.get(value, str(value)),
    )


def _known_versions() -> list[str]:
    with session.asking():
        return [version.id for version in session.api().versions().items]


def _nothing(filters: dict[str, Any], trail: Trail) -> None:
    if filters:
        st.info("No conversation matches. Take a filter away or search for other words.")
    elif trail.has_previous_page:
        st.info("No more conversations here.")
        trail.start_over(filters)
    else:
        st.info(
            "There are no conversations yet. Put the widget on a page (see *Sites*), write a "
            "message there, and it appears here within seconds."
        )


def _table(items: list[ConversationItem]) -> None:
    """The list; a click anywhere in a row opens it. Cells of a table are text, never Markdown."""
    view = st.session_state.setdefault("conversations_view", 0)
    state = draw(
        _rows(items),
        WIDTHS,
        "First message",
        room=WIDTH - SELECTION,
        types={
            "Messages": st.column_config.NumberColumn,
            "Reviewed": st.column_config.CheckboxColumn,
        },
        key=f"conversations-{view}",
        on_select="rerun",
        selection_mode=["single-row", "single-cell"],
        row_height=38,
        height="content",
        alt="List of conversations. Select a row to open it.",
    )
    chosen = _chosen_row(state["selection"])
    if chosen is not None and chosen < len(items):
        # a new key: coming back to the list must not open the same row again
        st.session_state["conversations_view"] = view + 1
        st.query_params[OPEN] = items[chosen].id
        st.rerun()


def _chosen_row(selection: Any) -> int | None:
    rows = [*selection.get("rows", []), *(row for row, _ in selection.get("cells", []))]
    return int(rows[0]) if rows else None


def _rows(items: list[ConversationItem]) -> list[dict[str, object]]:
    zone = browser_zone()
    return [
        {
            "First message": item.preview or "(nothing written yet)",
            "Status": STATUS_LABELS.get(item.status, item.status),
            "Last activity": when(item.updated_at, zone),
            "Site": item.site,
            "Messages": item.messages,
            "Rating": "★" * item.score if item.score else "",
            "Reviewed": item.reviewed,
            "Training": "excluded" if item.excluded else "",
            "Versions": ", ".join(item.versions),
        }
        for item in items
    ]


def _pager(trail: Trail, shown: int) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        newer = st.button(
            "Newer", icon=":material/chevron_left:", disabled=not trail.has_previous_page
        )
        older = st.button(
            "Older", icon=":material/chevron_right:", disabled=not trail.has_next_page
        )
        st.caption(
            f"Page {len(trail.cursors)}, {plural(shown, 'conversation')}. Click a row to open it."
        )
    if newer or older:
        trail.turn(forward=older)
        st.rerun()


if __name__ == "__main__":
    page()
