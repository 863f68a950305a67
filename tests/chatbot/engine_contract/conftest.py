"""One suite, every runtime: ``torch`` and ``openvino`` in this process, ``remote`` against a real
``transformers serve``."""

import importlib.util
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbot.engine.factory import create_engine
from chatbot.engine.interface import Engine
from chatbot.settings import Settings
from tests.chatbot.engine.helpers import until
from tests.chatbot.engine_contract.served import transformers_serve
from tests.chatbot.engine_contract.talker import save_talker

Running = Callable[..., AbstractAsyncContextManager[Engine]]
RUNTIMES = ("torch", "openvino", "remote")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the tiny base model that knows one text."""
    return save_talker(tmp_path_factory.mktemp("talker") / "talker")


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a ``transformers serve``: FRONTDESK_TEST_TRANSFORMERS_URL, else one of our own."""
    given = os.environ.get("FRONTDESK_TEST_TRANSFORMERS_URL")
    if given:
        yield given
        return
    with transformers_serve(tmp_path_factory.mktemp("served")) as url:
        yield url


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    """The runtime's name; one that is not installed is skipped."""
    name: str = request.param
    if name == "openvino" and importlib.util.find_spec("openvino") is None:
        pytest.skip("needs the extra: pip install 'frontdesk[openvino]'")
    return name


@pytest.fixture
def running(
    runtime: str,
    talker: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Running:
    """``running(**settings)``: a started engine of the runtime on the talker."""
    # a server that shares two busy cores with the tests may be slow to say that it is well
    monkeypatch.setattr("chatbot.engine.remote.engine.CHECK_SECONDS", 600.0)
    given: dict[str, Any] = {
        "engine": runtime,
        "base_model": str(talker),
        "data_dir": talker.parent / "data",
        "dtype": "float32",
        "engine_threads": 1,
        "kv_cache_tokens": 4096,
        "prefill_chunk_tokens": 64,
        "max_context_tokens": 512,
        "max_running": 8,
    }
    if runtime == "remote":
        given |= {
            "remote_url": request.getfixturevalue("served"),
            "remote_model": str(talker),
            "remote_connect_seconds": 30.0,
            "remote_idle_seconds": 60.0,
        }

    @asynccontextmanager
    async def run(**changes: Any) -> AsyncIterator[Engine]:
        engine = create_engine(Settings(**(given | changes)))
        try:
            await engine.start()
            if runtime == "remote":  # a slow machine's server may need a second look
                await until(lambda: engine.stats().healthy, 200)
            yield engine
        finally:
            await engine.close()

    return run
