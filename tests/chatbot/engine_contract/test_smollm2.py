"""The real base model behind the real server: it says what the model says by itself."""

from pathlib import Path

import pytest
import torch

from chatbot.base_models import load_base
from chatbot.engine.remote.engine import RemoteEngine
from chatbot.prompt import encode_prompt
from chatbot.settings import Settings
from tests.chatbot.engine.helpers import collect, generate, request, until

QUESTION = "What is the capital of France? Say it with an emoji."


@pytest.mark.model
async def test_remote_says_what_the_model_says(
    served: str, base_dir: Path, data_dir_with_base: Path
) -> None:
    model, tokenizer = load_base("smollm2-135m", data_dir_with_base, torch.float32)
    settings = Settings(
        engine="remote",
        remote_url=served,
        remote_model=str(base_dir),
        data_dir=data_dir_with_base,
        remote_connect_seconds=30.0,
        remote_idle_seconds=60.0,
    )
    engine = RemoteEngine(settings)
    try:
        await engine.start()
        await until(lambda: engine.stats().healthy, 200)
        assert engine.max_context == 4096
        ids = encode_prompt([{"role": "user", "content": QUESTION}], engine.tokenizer, 500)
        chunks = await collect(engine, request(ids, max_tokens=16))
    finally:
        await engine.close()
    text = "".join(chunk.text for chunk in chunks)
    assert text == tokenizer.decode(generate(model, ids, 16), skip_special_tokens=True)
    assert "Paris" in text
