"""Opening the stores: what is away is named, nothing is left open, secrets are made once."""

import asyncio
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chatbot.bootstrap import kept_secret, make_data_dir, open_services, resolve_redis_url
from chatbot.errors import SettingsError, StoreUnavailable
from chatbot.settings import Settings, load_settings


def _settings(tmp_path: Path, **more: object) -> Settings:
    return load_settings(data_dir=tmp_path, **more)


async def test_redis_away_at_start_is_named_without_its_password(tmp_path: Path) -> None:
    settings = _settings(tmp_path, redis_url="redis://:hush@127.0.0.1:1/0")
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1/0 does not answer") as caught:
        async with open_services(settings):
            pass
    assert "hush" not in str(caught.value)


async def test_database_away_at_start_is_named(tmp_path: Path, redis_url: str) -> None:
    settings = _settings(
        tmp_path, redis_url=redis_url, database_url="postgresql+psycopg://me:hush@127.0.0.1:1/x"
    )
    with pytest.raises(StoreUnavailable, match="database") as caught:
        async with open_services(settings):
            pass
    assert "hush" not in str(caught.value)


def test_no_store_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"frontdesk up.*FRONTDESK_REDIS_URL"):
        resolve_redis_url(_settings(tmp_path))


async def test_a_fresh_directory_opens_with_the_base_model_live(
    tmp_path: Path, redis_url: str
) -> None:
    settings = _settings(tmp_path / "new", redis_url=redis_url)
    async with open_services(settings) as services:
        live = await asyncio.to_thread(services.versions.live)
        assert live.state == "live"
        assert services.admin_token
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SettingsError, match=r"data_dir .*file"):
        make_data_dir(tmp_path / "file" / "data")


def test_processes_that_start_at_once_agree_on_one_secret(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        secrets = list(pool.map(lambda _: kept_secret(tmp_path, "secret-key"), range(32)))
    assert len(set(secrets)) == 1
    assert len(secrets[0]) >= 32
    assert stat.S_IMODE((tmp_path / "secret-key").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret-key"]
