"""The real base model behind the official client."""

from pathlib import Path
from typing import Any

import pytest

from chatbot.engine.factory import create_engine
from chatbot.prompt import ChatMessage, encode_prompt
from tests.chatbot.engine.helpers import request, text_of
from tests.chatbot.server.completions.conftest import serving
from tests.chatbot.worker.conftest import Place

TOKENS = 16


@pytest.mark.model
async def test_two_turns_with_the_base_model(place: Place, data_dir_with_base: Path) -> None:
    options = {"engine": "torch", "dtype": "float32", "device": "cpu", "kv_cache_tokens": 2048}
    settings = place.services.settings.model_copy(
        update={**options, "data_dir": data_dir_with_base}
    )
    engine: Any = create_engine(settings)
    await engine.start()
    place.engine = engine
    messages: list[Any] = [
        {"role": "system", "content": "You are a helpful assistant of a shop."},
        {"role": "user", "content": "Hello! My parcel has not arrived. What can I do?"},
    ]
    try:
        async with serving(place) as desk, place.worker(drain_seconds=0.2):
            first = await desk.ask(messages=messages, max_tokens=TOKENS, seed=1)
            text = first.choices[0].message.content
            chat: list[ChatMessage] = [*messages]
            ids = encode_prompt(chat, engine.tokenizer, 1000)
            assert text == await text_of(engine, request(ids, max_tokens=TOKENS, salt="x"))
            assert first.usage.prompt_tokens == len(ids)
            assert first.choices[0].finish_reason == "length"
            messages += [first.choices[0].message, {"role": "user", "content": "Thank you!"}]
            stream = await desk.ask(
                messages=messages,
                max_tokens=TOKENS,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
            *chunks, last = [chunk async for chunk in stream]
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            assert last.usage.completion_tokens == TOKENS
            # whole blocks of the first turn were computed before
            assert last.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 16
    finally:
        await engine.close()
