"""Adapters that are merged into weights of their own while replies go on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

pytest.importorskip("openvino", reason="needs the extra: pip install 'frontdesk[openvino]'")

from chatbot.engine.openvino.engine import OpenVinoEngine
from chatbot.engine.openvino.export import merged_model
from chatbot.engine.openvino.runner import OpenVinoRunner
from chatbot.engine.torch.adapters import load_adapter
from chatbot.engine.torch.families import build_decoder
from chatbot.errors import ModelError
from tests.chatbot.engine.helpers import request, tokens_of, until
from tests.chatbot.engine_openvino import test_graph
from tests.chatbot.engine_openvino.test_graph import (
    assert_close,
    exported,
    make_adapter,
    rounded,
    run_prompts,
)
from tests.chatbot.engine_openvino.tiny import running, tiny_model

PROMPT = list(b"How do I return my order, and how long does it take until I have my money?")
LONG = {"max_tokens": 40, "ignore_eos": True}


@asynccontextmanager
async def merging(tiny: Path, most: int = 1, **changes: Any) -> AsyncIterator[OpenVinoEngine]:
    """In float32, where a row's result never depends on its company; merging is off by itself
    there, and so is switched on by hand."""
    async with running(tiny, **changes) as engine:
        engine._merger._most = most
        yield engine


async def merged(engine: OpenVinoEngine, *names: str) -> None:
    await until(lambda: set(engine._merger.merged) == set(names), 60)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_merged_weights_say_what_peft_says(tmp_path: Path, name: str) -> None:
    directory = make_adapter(tmp_path, name, r=4, seed=1)
    base = exported(name)
    adapter = load_adapter("v1", directory, test_graph.skeleton(base))
    decoder = build_decoder(tiny_model(name), 512, frozenset())
    runner = OpenVinoRunner(base, 16, "float32", 1)
    model = merged_model(adapter, decoder, tiny_model(name).config, base)
    assert model.weights["embedding.codes"] is base.weights["embedding.codes"]
    runner.merge(adapter.uid, model)
    # all of a step, and none of them, have the merged adapter
    found = run_prompts(runner, [adapter] * len(test_graph.PROMPTS), 100)
    tuned, int8 = PeftModel.from_pretrained(tiny_model(name), directory), rounded(name, model)
    with torch.inference_mode():
        for prompt, logits in zip(test_graph.PROMPTS, found, strict=True):
            assert_close(logits, int8(torch.tensor([prompt])).logits[0, -1])
            wanted = tuned(torch.tensor([prompt])).logits[0, -1]
            plain = tiny_model(name)(torch.tensor([prompt])).logits[0, -1]
            assert (logits - wanted).norm() < (plain - wanted).norm() / 2


async def test_a_reply_keeps_to_what_it_began_with(tiny: Path, tmp_path: Path) -> None:
    directory = make_adapter(tmp_path, "llama", r=4, seed=1)
    params = {"max_tokens": 300, "ignore_eos": True}
    async with merging(tiny, most=0) as engine:
        await engine.load_adapter("v1", directory)
        wanted = await tokens_of(engine, request(PROMPT, "v1", **params))
        assert engine._merger.merged == ()
    async with merging(tiny) as engine:
        await engine.load_adapter("v1", directory)
        began = asyncio.create_task(tokens_of(engine, request(PROMPT, "v1", **params)))
        await merged(engine, "v1")
        assert await began == wanted


async def test_its_company_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    """Merged versions, one beside the weights, and the base, in the same steps."""
    names = ("v1", "v2", "v3")
    async with merging(tiny, most=2) as engine:
        for seed, name in enumerate(names, start=3):
            await engine.load_adapter(name, make_adapter(tmp_path / name, "llama", r=4, seed=seed))
        await until(lambda: len(engine._merger.merged) == 2, 60)
        everyone = (None, *names)
        alone = [await tokens_of(engine, request(PROMPT, n, "a", **LONG)) for n in everyone]
        asked = (tokens_of(engine, request(PROMPT, n, "b", **LONG)) for n in everyone * 2)
        assert await asyncio.gather(*asked) == alone * 2
        assert len({tuple(tokens) for tokens in alone}) > 2


async def test_a_dropped_one_makes_room(tiny: Path, tmp_path: Path) -> None:
    async with merging(tiny) as engine:
        await engine.load_adapter("v1", make_adapter(tmp_path / "v1", "llama", r=4, seed=1))
        await merged(engine, "v1")
        await engine.load_adapter("v2", make_adapter(tmp_path / "v2", "llama", r=4, seed=2))
        running_one = asyncio.create_task(
            tokens_of(engine, request(PROMPT, "v1", max_tokens=100, ignore_eos=True))
        )
        await until(lambda: engine.stats().running == 1)
        await engine.drop_adapter("v1")
        assert running_one.done()
        await merged(engine, "v2")
        assert len(engine._runner._merged) == 1  # type: ignore[attr-defined]


async def test_dropping_waits_for_replies_from_before_the_merge(tiny: Path, tmp_path: Path) -> None:
    async with merging(tiny) as engine:
        await engine.load_adapter("v1", make_adapter(tmp_path, "llama", r=4, seed=1))
        began = asyncio.create_task(
            tokens_of(engine, request(PROMPT, "v1", max_tokens=400, ignore_eos=True))
        )
        await until(lambda: engine.stats().running == 1)
        await engine.drop_adapter("v1")
        assert began.done()


async def test_an_adapter_gone_bad_is_not_merged(tiny: Path, tmp_path: Path) -> None:
    directory = make_adapter(tmp_path, "llama", r=4, seed=1)
    file = directory / "adapter_model.safetensors"
    save_file({key: tensor * 1e30 for key, tensor in load_file(file).items()}, file)
    async with merging(tiny) as engine:
        await engine.load_adapter("bad", directory)
        await until(lambda: bool(engine._merger._refused), 60)
        with pytest.raises(ModelError, match="not finite"):
            await tokens_of(engine, request(PROMPT, "bad", **LONG))


async def test_closing_in_the_middle_leaves_no_task(tiny: Path, tmp_path: Path) -> None:
    async with merging(tiny) as engine:
        await engine.load_adapter("v1", make_adapter(tmp_path, "llama", r=4, seed=1))
    assert asyncio.all_tasks() == {asyncio.current_task()}
