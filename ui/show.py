"""How values look in the console: times, durations, numbers, states. No I/O."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import streamlit as st

ACCENT = "#12857a"  # legible on light and on dark, and under white
STATUS_LABELS = {"bot": "Bot", "waiting": "Waiting", "human": "Person", "closed": "Closed"}
RUN_COLORS = {
    "queued": "gray",
    "running": "blue",
    "completed": "green",
    "failed": "red",
    "cancelled": "orange",
}
VERSION_COLORS = {"candidate": "blue", "live": "green", "retired": "gray"}


def browser_zone() -> ZoneInfo:
    """Time zone of who looks at the page; UTC when the browser did not say."""
    try:
        return ZoneInfo(st.context.timezone or "UTC")
    except (ZoneInfoNotFoundError, ValueError):
        return ZoneInfo("UTC")


def when(milliseconds: int | None, zone: ZoneInfo | None = None) -> str:
    """Unix milliseconds as a date and time in the browser's time zone; "" for None."""
    if milliseconds is None:
        return ""
    at = datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone(zone or browser_zone())
    return at.strftime("%d %b %Y %H:%M").lstrip("0")


def duration(seconds: float | None) -> str:
    """Seconds as "45 s", "12 min 5 s" or "2 h 3 min"; "–" for None."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def number(value: float | int | None, digits: int = 2) -> str:
    """A number with thousands separated; whole numbers without a fraction; "–" for None."""
    if value is None:
        return "–"
    if isinstance(value, int) or (digits == 0):
        return f"{value:,.0f}"
    return f"{value:,.{digits}f}"


def plural(count: int, one: str, many: str = "") -> str:
    """ "1 dialogue", "1,200 dialogues"."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def escaped(text: str) -> str:
    """``text`` such that Markdown shows it as it is. For labels, where only Markdown goes;
    whole texts of visitors and models go through ``st.text``."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|$~:" else c for c in text)
