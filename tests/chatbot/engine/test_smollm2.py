"""The real base model: the engine says, in float32, token for token what generate says."""

import asyncio
from pathlib import Path

import pytest
import torch

from chatbot.base_models import load_base
from chatbot.engine.factory import create_engine
from chatbot.engine.torch.engine import TorchEngine
from chatbot.settings import Settings
from tests.chatbot.engine.helpers import collect, generate, request

QUESTIONS = (
    "Hello! My parcel has not arrived. What can I do?",
    "Can I change the delivery address of order 4711?",
    "Schreib mir bitte einen Satz mit einem Emoji 🙂.",
)


@pytest.mark.model
async def test_engine_equals_generate_on_smollm2(data_dir_with_base: Path) -> None:
    model, tokenizer = load_base("smollm2-135m", data_dir_with_base, torch.float32, "cpu")
    prompts = [
        tokenizer.encode(
            f"<|im_start|>system\nYou are a helpful assistant of a shop.<|im_end|>\n"
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
            add_special_tokens=False,
        )
        for question in QUESTIONS
    ]
    wanted = [generate(model, prompt, 24) for prompt in prompts]
    settings = Settings(
        engine="torch",
        dtype="float32",
        device="cpu",
        data_dir=data_dir_with_base,
        kv_cache_tokens=2048,
        prefill_chunk_tokens=32,
    )
    engine = create_engine(settings)
    assert isinstance(engine, TorchEngine)
    await engine.start()
    try:
        asked = [request(prompt, max_tokens=24) for prompt in prompts]
        replies = await asyncio.gather(*(collect(engine, each) for each in asked))
    finally:
        await engine.close()
    for chunks, tokens in zip(replies, wanted, strict=True):
        assert [token for chunk in chunks for token in chunk.token_ids] == tokens
        text = "".join(chunk.text for chunk in chunks)
        assert text == tokenizer.decode(tokens, skip_special_tokens=True)
