"""The tables fit a window of 1400 pixels, so that nothing of them is behind the right edge."""

import json

import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.conftest import Console
from tests.ui.fake_api import NOW, World
from ui.tables import WIDTH


def widths(at: AppTest) -> dict[str, int]:
    """Pixels of the columns of the page's first table."""
    table = at.dataframe[0]
    config = json.loads(table.proto.columns)
    return {name: config[name]["width"] for name in table.value.columns}


@pytest.mark.parametrize("page", ["conversations", "models", "audit", "training"])
def test_a_table_fits_and_uses_the_page(console: Console, world: World, page: str) -> None:
    world.begin_run(steps=10).update(state="failed", error="no room", ended_at=NOW + 1000)
    world.conversations[0].update(excluded=True)
    assert WIDTH - 40 <= sum(widths(console(page)).values()) <= WIDTH


def test_an_empty_column_leaves_its_room_to_the_others(console: Console, world: World) -> None:
    assert "Training" not in (shown := widths(console()))
    assert sum(shown.values()) >= WIDTH - 40
    world.conversations[0].update(excluded=True)
    assert "Training" in widths(console())
