"""Tables that fit the page: no column is cut off at the right edge, and none is empty."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

WIDTH = 1000  # pixels beside the sidebar in a window of 1400
NOTHING = ("", "–", None)


def draw(
    rows: Sequence[Mapping[str, object]],
    widths: Mapping[str, int],
    grows: str,
    *,
    room: int = WIDTH,
    types: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Draw ``rows`` with columns as wide as ``widths`` says (pixels), without those that are empty
    in all rows; ``grows`` takes what ``room`` leaves. The first column is always there.

    Args:
        types: column types of st.column_config by name; text where not given.
        options: for st.dataframe, whose value is given back.
    """
    names = filled(rows)
    given = {name: widths[name] for name in names}
    if grows in given:
        given[grows] += max(0, room - sum(given.values()))
    config = {
        name: (types or {}).get(name, st.column_config.TextColumn)(width=width)
        for name, width in given.items()
    }
    frame = pd.DataFrame([{name: row[name] for name in names} for row in rows])
    return st.dataframe(frame, hide_index=True, column_config=config, **options)


def filled(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Names of the first column and of those in which a row says something."""
    first, *others = list(rows[0])
    return [first, *(name for name in others if any(row[name] not in NOTHING for row in rows))]


def in_words(data: Mapping[str, Any]) -> str:
    """What an entry holds besides, e.g. ``{"settings": {"max_steps": 20}, "reasons": []}`` as
    "max steps 20". What says nothing is left out."""
    return ", ".join(_parts(data))


def _parts(data: Mapping[str, Any]) -> list[str]:
    parts = []
    for name, value in data.items():
        label = name.replace("_", " ")
        if isinstance(value, Mapping):
            parts += _parts(value)
        elif isinstance(value, bool):
            parts.append(f"{label} {'yes' if value else 'no'}")
        elif isinstance(value, list) and value:
            parts.append(f"{label} {'; '.join(map(str, value))}")
        elif value not in (None, "", []):
            parts.append(f"{label} {value}")
    return parts
