"""The small model server, and engines that talk to it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chatbot.engine.remote.engine import RemoteEngine
from chatbot.settings import Settings
from tests.chatbot.engine_contract.talker import save_talker, talker_tokenizer
from tests.chatbot.engine_remote.model_server import ModelServer

TEXT = "Grüße 日👍 an dich!"  # 23 tokens: none of the talker's words is in it
TOKENIZER = talker_tokenizer()
Connected = Callable[..., AbstractAsyncContextManager[RemoteEngine]]


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False)
    return ids


def decode(ids: list[int]) -> str:
    text: str = TOKENIZER.decode(ids, skip_special_tokens=False)
    return text


PROMPT = encode("Say it: ")
TOKENS = len(encode(TEXT))


def model_server(**changes: Any) -> ModelServer:
    return ModelServer(TEXT, TOKENIZER.eos_token_id, encode, decode, **changes)


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with model_server().running() as found:
        yield found


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a base model with the server's tokenizer."""
    return save_talker(tmp_path_factory.mktemp("remote") / "talker")


def remote_settings(base: Path, url: str, **changes: Any) -> Settings:
    given: dict[str, Any] = {
        "engine": "remote",
        "remote_url": url,
        "base_model": str(base),
        "data_dir": base.parent / "data",
        "max_context_tokens": 512,
        "remote_idle_seconds": 60.0,
    }
    return Settings(**(given | changes))


@pytest.fixture
def connected(base: Path, server: ModelServer) -> Connected:
    """``connected(**settings)``: a started engine of ``server``."""

    @asynccontextmanager
    async def run(url: str = "", **changes: Any) -> AsyncIterator[RemoteEngine]:
        engine = RemoteEngine(remote_settings(base, url or server.url, **changes))
        try:
            await engine.start()
            yield engine
        finally:
            await engine.close()

    return run


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests need not wait between tries."""
    for name in ("BACKOFF_SECONDS", "AWAY_SECONDS", "CHECK_SECONDS"):
        monkeypatch.setattr(f"chatbot.engine.remote.engine.{name}", 0.01)
