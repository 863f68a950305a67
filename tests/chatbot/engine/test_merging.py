"""Adapters that are merged into weights of their own while replies go on, and weights that are laid
out for the processor."""

import asyncio
import copy
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from chatbot.engine.torch.device import use_threads
from chatbot.engine.torch.engine import TorchEngine
from chatbot.engine.torch.families import build_decoder
from chatbot.engine.torch.models import packable
from chatbot.errors import ModelError
from tests.chatbot.engine.helpers import request, running, tiny_model, tokens_of, until
from tests.chatbot.engine.test_adapters import PROMPT, make_adapter, peft_tokens

LONG = {"max_tokens": 40, "ignore_eos": True}


@asynccontextmanager
async def merging(most: int = 1, name: str = "llama") -> AsyncIterator[TorchEngine]:
    """In float32, where a row's result never depends on its company; merging is off by itself
    there, and so is switched on by hand."""
    async with running(tiny_model(name)) as engine:
        assert engine._merger._most == 0
        engine._merger._most = most
        yield engine


async def merged(engine: TorchEngine, *names: str) -> None:
    await until(lambda: set(engine._merger.merged) == set(names), 60)


@pytest.mark.parametrize("name", ["llama", "llama-bias-tied", "qwen3", "gpt2"])
async def test_merged_weights_say_what_peft_says(tmp_path: Path, name: str) -> None:
    directory = make_adapter(tmp_path, name)
    async with merging(name=name) as engine:
        plain = await tokens_of(engine, request(PROMPT, max_tokens=20, ignore_eos=True))
        await engine.load_adapter("v1", directory)
        await merged(engine, "v1")
        found = await tokens_of(engine, request(PROMPT, "v1", max_tokens=20, ignore_eos=True))
        assert found == peft_tokens(directory, name)
        assert found != plain
        again = request(PROMPT, salt="again", max_tokens=20, ignore_eos=True)
        assert await tokens_of(engine, again) == plain  # the base is as it was


async def test_a_reply_keeps_to_what_it_began_with(tmp_path: Path) -> None:
    directory = make_adapter(tmp_path)
    params = {"max_tokens": 300, "ignore_eos": True}
    async with merging(most=0) as engine:
        await engine.load_adapter("v1", directory)
        wanted = await tokens_of(engine, request(PROMPT, "v1", **params))
    async with merging() as engine:
        await engine.load_adapter("v1", directory)
        began = asyncio.create_task(tokens_of(engine, request(PROMPT, "v1", **params)))
        await merged(engine, "v1")
        assert await began == wanted


async def test_its_company_changes_nothing(tmp_path: Path) -> None:
    """Merged versions, one beside the weights, and the base, in the same steps."""
    names = ("v1", "v2", "v3")
    async with merging(most=2) as engine:
        for seed, name in enumerate(names, start=3):
            await engine.load_adapter(name, make_adapter(tmp_path / name, seed=seed))
        await until(lambda: len(engine._merger.merged) == 2, 60)
        everyone = (None, *names)
        alone = [await tokens_of(engine, request(PROMPT, n, "a", **LONG)) for n in everyone]
        asked = (tokens_of(engine, request(PROMPT, n, "b", **LONG)) for n in everyone * 2)
        assert await asyncio.gather(*asked) == alone * 2
        assert len({tuple(tokens) for tokens in alone}) == 4


async def test_a_dropped_one_makes_room(tmp_path: Path) -> None:
    async with merging() as engine:
        await engine.load_adapter("v1", make_adapter(tmp_path / "v1", seed=1))
        await merged(engine, "v1")
        await engine.load_adapter("v2", make_adapter(tmp_path / "v2", seed=2))
        began = asyncio.create_task(
            tokens_of(engine, request(PROMPT, "v1", max_tokens=100, ignore_eos=True))
        )
        await until(lambda: engine.stats().running == 1)
        await engine.drop_adapter("v1")
        assert began.done()
        await merged(engine, "v2")
        assert len(engine._runner._merged) == 1  # type: ignore[attr-defined]


async def test_an_adapter_gone_bad_is_not_merged(tmp_path: Path) -> None:
    directory = make_adapter(tmp_path)
    file = directory / "adapter_model.safetensors"
    save_file({key: tensor * 1e30 for key, tensor in load_file(file).items()}, file)
    async with merging() as engine:
        await engine.load_adapter("bad", directory)
        await until(lambda: bool(engine._merger._refused), 60)
        with pytest.raises(ModelError, match="not finite"):
            await tokens_of(engine, request(PROMPT, "bad", **LONG))


async def test_closing_in_the_middle_leaves_no_thread_or_task(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    async with merging() as engine:
        await engine.load_adapter("v1", make_adapter(tmp_path))
    left = set(threading.enumerate()) - threads
    assert not [thread for thread in left if thread.name.startswith("engine")]
    assert asyncio.all_tasks() == {asyncio.current_task()}


# -- the layout


@pytest.mark.parametrize("name", ["llama", "llama-bias-tied", "gpt2"])
def test_packed_weights_give_bit_for_bit_the_same(name: str) -> None:
    decoder = build_decoder(tiny_model(name).bfloat16(), 512, frozenset())
    if not packable(decoder.head):
        pytest.skip("oneDNN does not multiply bfloat16 on this processor")
    plain = copy.deepcopy(decoder)
    decoder.pack()
    for mine, other in zip(decoder.sites, plain.sites, strict=True):
        assert mine.weight.shape == other.weight.shape
        assert mine.weight.untyped_storage().nbytes() < other.weight.untyped_storage().nbytes()
        for rows in (1, 3, 16, 100):
            x = torch.randn(rows, other.weight.shape[1]).bfloat16()
            assert torch.equal(mine(x, ()), other(x, ()))


async def test_a_packed_engine_merges_by_itself_and_still_says_the_same(tmp_path: Path) -> None:
    async with running(tiny_model().bfloat16(), dtype="bfloat16") as engine:
        if not packable(engine._decoder.head):
            pytest.skip("oneDNN does not multiply bfloat16 on this processor")
        plain = await tokens_of(engine, request(PROMPT, **LONG))
        await engine.load_adapter("v1", make_adapter(tmp_path))
        await merged(engine, "v1")
        assert await tokens_of(engine, request(PROMPT, salt="b", **LONG)) == plain
        assert await tokens_of(engine, request(PROMPT, "v1", **LONG)) != plain


def test_a_thread_s_number_of_threads_is_its_own() -> None:
    """What another thread sets must not reach one that has not computed yet."""
    before = torch.get_num_threads()
    has_set, other_has_set = threading.Event(), threading.Event()
    found = []

    def engine() -> None:
        use_threads(3)
        has_set.set()
        other_has_set.wait(10)
        torch.ones(8) + 1
        found.append(torch.get_num_threads())

    def merger() -> None:
        has_set.wait(10)
        use_threads(1)
        other_has_set.set()

    threads = [threading.Thread(target=target) for target in (engine, merger)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(before)
    assert found == [3]
