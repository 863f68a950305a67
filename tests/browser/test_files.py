"""The widget's size, and its documentation: what is not documented is not there."""

import re
from pathlib import Path

import pytest

from chatbot.server.pages import load_assets, without_comments
from chatbot.server.site_settings import WidgetSettings

ROOT = Path(__file__).parents[2]
WIDGET = ROOT / "chatbot" / "widget"
DESK = ("desk", "assist")
GUIDE = (ROOT / "docs" / "embedding.md").read_text()


def test_the_script_weighs_at_most_8_kilobytes() -> None:
    size = len(load_assets(WIDGET)["widget.js"].packed)
    print(f"widget.js: {size} bytes gzipped")
    assert size <= 8 * 1024


def test_the_whole_widget_weighs_at_most_40_kilobytes() -> None:
    """All that a visitor loads: everything but the desk's files, English, and one more language,
    the largest."""
    files = {
        name: len(asset.packed)
        for name, asset in load_assets(WIDGET).items()
        if not name.startswith(DESK)
    }
    languages = {name: len(asset.packed) for name, asset in load_assets(WIDGET / "locales").items()}
    assert len(files) >= 14
    total = sum(files.values()) + languages.pop("en.json") + max(languages.values())
    print(f"the widget: {total} bytes gzipped; {files | languages}")
    assert total <= 40 * 1024


def test_comments_are_not_sent_and_lines_keep_their_numbers() -> None:
    source = "/*! stays */\n/**\n * goes\n */\nlet a = 1; // stays\n  // goes\n/* x */ let b;\n"
    assert without_comments(source) == (
        "/*! stays */\n\n\n\nlet a = 1; // stays\n\n/* x */ let b;\n"
    )


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


def documented(heading: str, pattern: str) -> set[str]:
    """What the first columns of a chapter's tables name."""
    [chapter] = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL)
    cells = re.findall(r"^\| (.*?) \|", chapter, re.MULTILINE)
    return {name for cell in cells for name in re.findall(pattern, cell)}


def test_every_attribute_and_setting_is_documented() -> None:
    asked = set(re.findall(r"(?:option|yes)\('(\w+)'", script()))
    assert asked == documented("Attributes", r"`data-(\w+)`")


def test_every_method_and_state_is_documented() -> None:
    code = script()
    body = code[code.index("const methods = {") : code.index("function forgetPage(")]
    names = set(re.findall(r"^    (\w+)(?:,$|\(|: \()", body, re.MULTILINE))
    names |= set(re.findall(r"get (\w+)\(\)", code))
    assert names == documented("Methods and state", r"`frontdesk\.(\w+)")


def test_every_event_and_error_code_is_documented() -> None:
    code = script()
    events = set(re.findall(r"emit\('(\w+)'", code)) | {"opened", "closed"}
    assert events == documented("Events", r"`frontdesk:(\w+)`")
    codes = set(re.findall(r"fail\('(\w+)'", code))
    assert codes
    for name in codes:
        assert f"`{name}`" in GUIDE


def test_every_css_variable_is_documented() -> None:
    code = script()
    read = set(re.findall(r"--frontdesk-([\w-]+)", code)) - {"$"}
    read |= set(re.findall(r"variable\('(\w+)'\)", code))
    assert read == documented("CSS variables", r"`--frontdesk-([\w-]+)`")


def test_every_setting_of_a_site_is_documented() -> None:
    assert documented("What the site's owner sets", r"^`(\w+)`") == set(WidgetSettings.model_fields)


def test_the_guide_names_every_language() -> None:
    for path in (WIDGET / "locales").glob("*.json"):
        assert f"`{path.stem}`" in GUIDE
