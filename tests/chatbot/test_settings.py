"""Settings: unknown names and bad values fail at start-up and are named; secrets stay masked."""

import json

import pytest
from typer.testing import CliRunner

from chatbot.cli import app, setting_rows
from chatbot.errors import SettingsError
from chatbot.settings import Settings, load_settings


def test_an_unknown_variable_is_named_with_its_nearest_neighbour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FRONTDESK_REDIS_ULR", "redis://x")
    with pytest.raises(SettingsError, match=r"FRONTDESK_REDIS_ULR.*FRONTDESK_REDIS_URL"):
        load_settings()


def test_a_bad_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTDESK_PORT", "eighty")
    with pytest.raises(SettingsError, match="FRONTDESK_PORT"):
        load_settings()


def test_all_bad_values_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTDESK_PORT", "-1")
    monkeypatch.setenv("FRONTDESK_MAX_RUNNING", "0")
    with pytest.raises(SettingsError, match=r"FRONTDESK_PORT.*FRONTDESK_MAX_RUNNING"):
        load_settings()


def test_an_option_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTDESK_PORT", "1")
    assert load_settings(port=2).port == 2
    assert load_settings(port=None).port == 1


def test_every_setting_has_a_help_text() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_config_tells_the_source_and_masks_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRONTDESK_SECRET_KEY", "hush-hush")
    monkeypatch.setenv("FRONTDESK_REDIS_URL", "redis://me:hush-hush@host:1/0")
    result = CliRunner().invoke(app, ["config", "--json"])
    assert result.exit_code == 0, result.output
    assert "hush-hush" not in result.output
    rows = {row["name"]: row for row in json.loads(result.output)}
    assert rows["secret_key"]["source"] == "environment"
    assert rows["redis_url"]["value"] == "redis://me:********@host:1/0"
    assert rows["port"]["source"] == "default"
    assert set(rows) == set(Settings.model_fields)


def test_an_option_is_told_as_such() -> None:
    rows = {row["name"]: row for row in setting_rows(load_settings(data_dir="x"), {"data_dir"})}
    assert rows["data_dir"]["source"] == "option"
