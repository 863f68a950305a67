"""What every runtime refuses, before the first chunk."""

import pytest

from chatbot.errors import EngineBusy, RequestRefused
from tests.chatbot.engine.helpers import request, text_of, until
from tests.chatbot.engine_contract.conftest import Running
from tests.chatbot.engine_contract.talker import VOCABULARY, script

PROMPT = script()[:3]


async def test_a_full_engine_is_busy_with_a_time_and_takes_requests_again(
    running: Running,
) -> None:
    async with running(max_running=1, max_waiting=1) as engine:
        streams = [
            engine.submit(request(PROMPT, max_tokens=400, ignore_eos=True)) for _ in range(2)
        ]
        with pytest.raises(EngineBusy) as refused:
            engine.submit(request(PROMPT))
        assert 0.1 <= refused.value.retry_after <= 60
        for stream in streams:
            await stream.aclose()
        await until(lambda: engine.stats().running + engine.stats().waiting == 0, 60)
        assert await text_of(engine, request(PROMPT, max_tokens=2)) == " parcel left"


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([], "empty"),
        ([1] * 512, "512 tokens and leaves no room"),
        ([VOCABULARY], f"outside 0..{VOCABULARY - 1}"),
        ([-1], f"outside 0..{VOCABULARY - 1}"),
    ],
)
async def test_prompts_that_cannot_be_answered_are_refused(
    running: Running, prompt: list[int], reason: str
) -> None:
    async with running() as engine:
        with pytest.raises(RequestRefused, match=reason):
            engine.submit(request(prompt))


async def test_an_id_that_is_being_answered_is_refused(running: Running) -> None:
    async with running() as engine:
        asked = request(PROMPT, max_tokens=400, ignore_eos=True)
        stream = engine.submit(asked)
        with pytest.raises(RequestRefused, match="is being answered already"):
            engine.submit(asked)
        await stream.aclose()


async def test_an_adapter_that_is_not_loaded_is_refused(running: Running) -> None:
    async with running() as engine:
        with pytest.raises(RequestRefused, match="'v9' is not loaded"):
            engine.submit(request(PROMPT, adapter="v9"))
