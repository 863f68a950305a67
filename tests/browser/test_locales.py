"""The files that translators edit: complete, with the same values to fill in, the right plural
forms, and every word that the code asks for."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.browser.stage import Stage

WIDGET = Path(__file__).parents[2] / "chatbot" / "widget"
FILES = {path.stem: json.loads(path.read_text()) for path in (WIDGET / "locales").glob("*.json")}
ENGLISH = FILES["en"]
CODE = "\n".join(
    (WIDGET / name).read_text()
    for name in ("chat.js", "chat.html", "extras.js", "panels.js", "view.js")
)


def _values(text: Any) -> set[str]:
    forms = text.values() if isinstance(text, dict) else [text]
    return {name for form in forms for name in re.findall(r"\{(\w+)\}", form)}


def test_the_languages_are_those_that_the_code_knows() -> None:
    [known] = re.findall(r"LOCALES = \[(.*?)\]", (WIDGET / "i18n.js").read_text())
    assert set(re.findall(r"'(\w+)'", known)) == set(FILES) == {"en", "zh", "es", "de", "ar"}


@pytest.mark.parametrize("language", sorted(FILES))
def test_a_language_is_complete(language: str) -> None:
    words = FILES[language]
    assert list(words) == list(ENGLISH), "the same keys in the same order"
    for key, english in ENGLISH.items():
        assert isinstance(words[key], dict) == isinstance(english, dict), key
        assert _values(words[key]) == _values(english), key
        forms = words[key].values() if isinstance(words[key], dict) else [words[key]]
        assert all(form.strip() == form != "" for form in forms), key


@pytest.mark.parametrize("language", sorted(set(FILES) - {"en"}))
def test_a_language_is_translated(language: str) -> None:
    same = {key for key, text in FILES[language].items() if text == ENGLISH[key]}
    assert same <= {"presence.offline"}


def test_every_word_that_the_code_asks_for_is_there_and_none_else() -> None:
    asked = set(re.findall(r"""\bt\(\s*'([\w.]+)'""", CODE))
    asked |= set(re.findall(r"""data-t(?:-\w+)?="([\w.]+)\"""", CODE))
    asked |= set(re.findall(r"""'([a-z]+\.[a-z_]+)'""", CODE)) & set(ENGLISH)
    made = {f"tag.{end}" for end in ("stopped", "length")}
    made |= {key for key in ENGLISH if key.startswith("error.")}
    assert asked <= set(ENGLISH)
    assert set(ENGLISH) - asked - made == set()


def test_no_language_says_how_soon_the_assistant_answers() -> None:
    """It may be loading its model, or many may be waiting: the page does not know."""
    automatic = {
        "en": "automatic",
        "de": "automatisch",
        "es": "automática",
        "zh": "自动",
        "ar": "آلي",
    }
    soon = ("at once", "instant", "sofort", "即时", "فور")
    for language, words in FILES.items():
        assert automatic[language] in words["presence.bot"]
        assert not any(word in words["presence.bot"] for word in soon)


async def test_plural_forms_are_those_of_the_language(stage: Stage) -> None:
    context = await stage.visitor()
    page = await context.new_page()
    for language, words in FILES.items():
        needed = set(
            await page.evaluate(
                "(name) => new Intl.PluralRules(name).resolvedOptions().pluralCategories", language
            )
        )
        for key, text in words.items():
            if isinstance(text, dict):
                assert set(text) == needed, (language, key)
