"""Versions that live side by side, in every runtime whose server can hold them."""

import asyncio
from pathlib import Path

import pytest

from chatbot.errors import AdapterInvalid, RequestRefused
from tests.chatbot.engine.helpers import request, text_of, until
from tests.chatbot.engine_contract.conftest import Running
from tests.chatbot.engine_contract.talker import save_adapter, script

PROMPT = script()[:3]
SHORT = {"max_tokens": 10, "ignore_eos": True}


@pytest.fixture(scope="session")
def adapters(talker: Path) -> list[Path]:
    return [save_adapter(talker, talker.parent / f"v{n}", seed=n) for n in (1, 2)]


@pytest.fixture
def holds_adapters(runtime: str) -> None:
    if runtime == "remote":
        pytest.skip("transformers serve has no adapters: tests/chatbot/engine_remote has vLLM's")


@pytest.mark.usefixtures("holds_adapters")
async def test_two_adapters_at_once_say_what_each_says_alone(
    running: Running, adapters: list[Path]
) -> None:
    async with running() as engine:
        for number, directory in enumerate(adapters, 1):
            await engine.load_adapter(f"v{number}", directory)
        assert engine.stats().adapters == ("v1", "v2")
        names = [None, "v1", "v2"]
        alone = [await text_of(engine, request(PROMPT, name, "a", **SHORT)) for name in names]
        assert len(set(alone)) == 3
        asked = [request(PROMPT, name, "b", **SHORT) for name in names * 2]
        assert await asyncio.gather(*(text_of(engine, each) for each in asked)) == alone * 2


@pytest.mark.usefixtures("holds_adapters")
async def test_dropping_refuses_new_requests_and_waits_for_the_running_one(
    running: Running, adapters: list[Path]
) -> None:
    async with running() as engine:
        await engine.load_adapter("v1", adapters[0])
        await engine.load_adapter("v1", Path("no-such-directory"))  # the name is taken: no-op
        stream = engine.submit(request(PROMPT, "v1", max_tokens=150, ignore_eos=True))
        await until(lambda: engine.stats().running == 1)
        drop = asyncio.create_task(engine.drop_adapter("v1"))
        await asyncio.sleep(0)
        assert engine.stats().adapters == ()
        with pytest.raises(RequestRefused, match="'v1' is not loaded"):
            engine.submit(request(PROMPT, "v1"))
        assert not drop.done()
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].finish_reason == "length"
        await drop
        await engine.drop_adapter("v1")  # unknown by now: nothing to do


async def test_a_directory_that_is_no_adapter_is_refused(running: Running, tmp_path: Path) -> None:
    async with running() as engine:
        with pytest.raises(AdapterInvalid):
            await engine.load_adapter("v1", tmp_path)
        assert engine.stats().adapters == ()


async def test_what_a_runtime_cannot_hold_is_an_error_that_says_so(
    running: Running, runtime: str, adapters: list[Path]
) -> None:
    if runtime != "remote":
        pytest.skip("holds adapters")
    async with running() as engine:
        with pytest.raises(AdapterInvalid, match="transformers serve has no adapters"):
            await engine.load_adapter("v1", adapters[0])
