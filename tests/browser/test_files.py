"""The widget's size, and its documentation: what is not documented is not there."""

import gzip
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WIDGET = ROOT / "chatbot" / "widget"
GUIDE = (ROOT / "docs" / "embedding.md").read_text()


def size(path: Path) -> int:
    return len(gzip.compress(path.read_bytes(), 9))


def test_the_script_weighs_at_most_8_kilobytes() -> None:
    assert size(WIDGET / "widget.js") <= 8 * 1024


def test_the_whole_widget_weighs_at_most_40_kilobytes() -> None:
    files = [
        path for path in WIDGET.iterdir() if path.is_file() and not path.name.startswith("desk")
    ]
    assert len(files) >= 9
    assert sum(size(path) for path in files) <= 40 * 1024


@pytest.mark.parametrize("path", sorted(WIDGET.glob("*.*")), ids=lambda path: path.name)
def test_nothing_is_loaded_from_elsewhere_or_made_from_strings(path: Path) -> None:
    text = path.read_text()
    addresses = set(re.findall(r"https?://[\w.-]+", text))
    assert addresses <= {"http://www.w3.org", "https://your-frontdesk"}
    for sink in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
    ):
        assert sink not in text


def script() -> str:
    return (WIDGET / "widget.js").read_text()


def test_every_attribute_and_setting_is_documented() -> None:
    names = set(re.findall(r"option\('(\w+)'", script()))
    assert names == {"site", "position", "title", "theme", "color", "open"}
    for name in names:
        assert f"`data-{name}`" in GUIDE


def test_every_method_and_state_is_documented() -> None:
    code = script()
    body = code[code.index("const methods = {") : code.index("function call(")]
    names = set(re.findall(r"^    (\w+)(?:,$|\()", body, re.MULTILINE))
    names |= set(re.findall(r"get (\w+)\(\)", code))
    assert names == {"toggle", "setUser", "reset", "isOpen", "hasLoaded"}
    for name in names:
        assert re.search(rf"`frontdesk\.{name}\b", GUIDE), name


def test_every_event_and_error_code_is_documented() -> None:
    code = script()
    events = set(re.findall(r"emit\('(\w+)'", code)) | {"opened", "closed"}
    assert events == {"ready", "opened", "closed", "message", "error"}
    for name in events:
        assert f"`frontdesk:{name}`" in GUIDE
    for name in re.findall(r"fail\('(\w+)'", code):
        assert f"`{name}`" in GUIDE
