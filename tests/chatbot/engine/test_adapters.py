"""LoRA: identities against PEFT and plain algebra, refusals, and adapters coming and going."""

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from chatbot.engine.torch.adapters import LoraAdapter, load_adapter, merge_adapter
from chatbot.engine.torch.families import build_decoder
from chatbot.engine.torch.models import Decoder
from chatbot.errors import AdapterInvalid
from tests.chatbot.engine.helpers import (
    EagerDrafts,
    collect,
    generate,
    request,
    running,
    tiny_model,
    tokens_of,
    until,
)

PROMPT = [72, 101, 108, 108, 111, 32, 116, 104, 101, 114, 101]
LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_adapter(directory: Path, name: str = "llama", seed: int = 1, **options: Any) -> Path:
    """A PEFT adapter with random A and B, large enough to change the output."""
    given = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["c_attn", "c_proj", "c_fc"] if name == "gpt2" else LLAMA_TARGETS,
        "fan_in_fan_out": name == "gpt2",
    } | options
    peft = get_peft_model(tiny_model(name), LoraConfig(task_type="CAUSAL_LM", **given))
    torch.manual_seed(seed)  # after the model, which has a seed of its own
    for key, parameter in peft.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.3)
    peft.save_pretrained(directory)
    return directory


def decoder(name: str = "llama") -> Decoder:
    return build_decoder(copy.deepcopy(tiny_model(name)), 512, frozenset())


def peft_tokens(directory: Path, name: str = "llama", count: int = 20) -> list[int]:
    return generate(PeftModel.from_pretrained(tiny_model(name), directory), PROMPT, count)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "attention-only": {"target_modules": ["q_proj", "v_proj"]},
    "patterns": {
        "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 6},
        "alpha_pattern": {"up_proj": 3},
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
async def test_adapter_equals_peft(tmp_path: Path, options: dict[str, Any]) -> None:
    directory = make_adapter(tmp_path, **options)
    wanted = peft_tokens(directory)
    assert wanted != generate(tiny_model(), PROMPT, 20)
    async with running(tiny_model()) as engine:
        await engine.load_adapter("v1", directory)
        asked = request(PROMPT, adapter="v1", max_tokens=20, ignore_eos=True)
        assert await tokens_of(engine, asked) == wanted


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "llama-bias-tied"])
async def test_adapter_equals_peft_in_other_families(tmp_path: Path, name: str) -> None:
    directory = make_adapter(tmp_path, name)
    wanted = peft_tokens(directory, name)
    assert wanted != generate(tiny_model(name), PROMPT, 20)
    async with running(tiny_model(name)) as engine:
        await engine.load_adapter("v1", directory)
        asked = request(PROMPT, adapter="v1", max_tokens=20, ignore_eos=True)
        assert await tokens_of(engine, asked) == wanted


def weights(of: Decoder) -> list[torch.Tensor]:
    return [linear.weight for linear in of.sites]


def test_merged_weight_is_w_plus_scale_times_b_a(tmp_path: Path) -> None:
    directory = make_adapter(tmp_path)
    base = decoder()
    before = {
        module: linear.weight[rows].clone()
        for linear in base.sites
        for module, rows in linear.parts.items()
    }
    merge_adapter(base, load_adapter("v1", directory, base))
    matrices = load_file(directory / "adapter_model.safetensors")
    for linear in base.sites:
        for module, rows in linear.parts.items():
            key = f"base_model.model.{module}.lora_"
            change = 8 / 4 * matrices[f"{key}B.weight"] @ matrices[f"{key}A.weight"]
            torch.testing.assert_close(linear.weight[rows], before[module] + change)


def test_merging_twice_is_merging_once(tmp_path: Path) -> None:
    base = decoder()
    adapter = load_adapter("v1", make_adapter(tmp_path), base)
    merge_adapter(base, adapter)
    once = [weight.clone() for weight in weights(base)]
    merge_adapter(base, adapter)
    assert all(torch.equal(a, b) for a, b in zip(once, weights(base), strict=True))


async def test_mixed_adapter_batch_equals_one_by_one(tmp_path: Path) -> None:
    """Traffic shapes: no adapter, all the same, all distinct, skewed, all in one batch."""
    names: list[str | None] = [None, "a0", "a1", "a2"]
    shapes: list[list[str | None]] = [
        ["a0"] * 4,
        names,
        ["a1", "a1", "a1", None, "a2", "a1"],
        ["a2", None, "a0", None, "a2", "a1", "a0"],
    ]
    directories = [make_adapter(tmp_path / str(i), seed=i, r=2 + i) for i in range(3)]
    async with running(tiny_model()) as engine:
        for index, directory in enumerate(directories):
            await engine.load_adapter(f"a{index}", directory)

        async def ask(place: int, adapter: str | None) -> list[int]:
            prompt = [*PROMPT, place]
            return await tokens_of(
                engine, request(prompt, adapter=adapter, max_tokens=16, ignore_eos=True)
            )

        for shape in shapes:
            alone = [await ask(place, adapter) for place, adapter in enumerate(shape)]
            together = await asyncio.gather(*(ask(p, adapter) for p, adapter in enumerate(shape)))
            assert together == alone
        assert len({tuple(await ask(0, name)) for name in names}) == len(names)


SHAPES = {
    "identical": [0] * 10,
    "distinct": [0, 1, 2, 3, 4, 5, 6, 7, 8, None],
    "uniform": [0, 1, 2, 3, 4, 4, 3, 2, 1, 0],
    "zipf": [0, 0, 0, 0, 1, 1, 2, 3, 8, None],  # shares 1, 1/2, 1/3 ...
    "skewed": [0, 0, 0, 0, 0, 0, 0, 0, 7, None],
}


async def test_nine_versions_in_one_batch_each_as_if_alone(tmp_path: Path) -> None:
    """Traffic shapes as in Punica (arXiv 2310.18547), with and without drafts."""
    wanted: dict[tuple[int, int | None], list[int]] = {}
    for index in range(9):
        make_adapter(tmp_path / str(index), seed=index, r=2 + index % 4)
    for policy, most in ((None, 0), (EagerDrafts(), 6)):
        async with running(
            tiny_model(), policy=policy, max_draft_tokens=most, max_running=16
        ) as engine:
            for index in range(9):
                await engine.load_adapter(f"a{index}", tmp_path / str(index))

            async def ask(place: int, adapter: int | None, salt: str) -> list[int]:
                name = None if adapter is None else f"a{adapter}"
                params = {"max_tokens": 10, "ignore_eos": True}
                return await tokens_of(engine, request([*PROMPT, place], name, salt, **params))

            for name, shape in SHAPES.items():
                for pair in enumerate(shape):
                    if pair not in wanted:
                        wanted[pair] = await ask(*pair, "alone")
                together = await asyncio.gather(*(ask(*pair, name) for pair in enumerate(shape)))
                assert together == [wanted[pair] for pair in enumerate(shape)], name
    assert len({tuple(tokens) for (place, _), tokens in wanted.items() if place == 0}) == 1
    assert len({tuple(tokens) for (place, _), tokens in wanted.items() if place == 8}) > 2


async def test_adapters_and_salts_never_share_blocks(tmp_path: Path) -> None:
    """The canary: equal prompts under another adapter or salt find nothing in the cache."""
    long = PROMPT * 5
    async with running(tiny_model()) as engine:
        await engine.load_adapter("v1", make_adapter(tmp_path / "1", seed=1))
        await engine.load_adapter("v2", make_adapter(tmp_path / "2", seed=2))
        kinds = [(None, ""), ("v1", ""), ("v2", ""), (None, "site"), ("v1", "site")]
        for expected in (0, len(long) - 1):
            for adapter, salt in kinds:
                chunks = await collect(engine, request(long, adapter, salt, max_tokens=2))
                assert chunks[-1].usage is not None
                assert chunks[-1].usage.cached_tokens == expected, (adapter, salt)
        await engine.drop_adapter("v1")
        await engine.load_adapter("v1", tmp_path / "2")  # the name again, other weights
        chunks = await collect(engine, request(long, "v1", max_tokens=2))
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.cached_tokens == 0


async def test_loading_beside_running_replies_leaves_them_alone(tmp_path: Path) -> None:
    directory = make_adapter(tmp_path)
    wanted = generate(tiny_model(), PROMPT, 120)
    async with running(tiny_model()) as engine:
        running_reply = asyncio.create_task(
            tokens_of(engine, request(PROMPT, max_tokens=120, ignore_eos=True))
        )
        await until(lambda: engine.stats().generated_tokens > 3)
        await engine.load_adapter("v1", directory)
        assert not running_reply.done()
        await engine.load_adapter("v1", Path("no-such-directory"))  # the name is taken: no-op
        assert await running_reply == wanted


def damage(directory: Path, how: str) -> None:
    """One kind of damage to an adapter directory."""
    config, matrices = directory / "adapter_config.json", directory / "adapter_model.safetensors"
    tensors = load_file(matrices)
    key = next(iter(tensors))
    if how == "truncated":
        matrices.write_bytes(matrices.read_bytes()[:-100])
    elif how == "garbage":
        matrices.write_bytes(b"\x00\xff" * 500)
    elif how == "no-weights":
        matrices.unlink()
    elif how == "no-config":
        config.unlink()
    elif how == "config-not-json":
        config.write_text("{")
    elif how == "not-finite":
        tensors[key][0, 0] = float("nan")
        save_file(tensors, matrices)
    elif how == "half-missing":
        save_file({k: v for k, v in tensors.items() if k != key}, matrices)
    elif how == "other-shape":
        tensors[key] = torch.zeros(4, 7)
        save_file(tensors, matrices)
    elif how == "unknown-module":
        tensors["base_model.model.model.layers.99.mlp.up_proj.lora_A.weight"] = tensors[key].clone()
        save_file(tensors, matrices)
    elif how == "unknown-key":
        tensors["base_model.model.lm_head.weight"] = torch.zeros(2, 2)
        save_file(tensors, matrices)
    else:
        changes = {
            "dora": {"use_dora": True},
            "bias": {"bias": "all"},
            "modules-to-save": {"modules_to_save": ["lm_head"]},
            "other-method": {"peft_type": "IA3"},
            "other-rank": {"r": 5},
        }[how]
        config.write_text(json.dumps(json.loads(config.read_text()) | changes))


DAMAGES = {
    "truncated": r"adapter_model\.safetensors: is damaged",
    "garbage": r"adapter_model\.safetensors: is damaged",
    "no-weights": r"adapter_model\.safetensors: the file is missing",
    "no-config": r"adapter_config\.json: the file is missing",
    "config-not-json": r"adapter_config\.json: cannot be read as JSON",
    "not-finite": r"not finite",
    "half-missing": r"has no lora_A",
    "other-shape": r"do not fit the base model's weight|are not a LoRA pair",
    "unknown-module": r"adapts model\.layers\.99\.mlp\.up_proj, which the base model does not have",
    "unknown-key": r"lm_head\.weight, which is not a LoRA matrix",
    "dora": r"adapter_config\.json: use_dora=True is not supported",
    "bias": r"bias='all' is not supported",
    "modules-to-save": r"modules_to_save=\['lm_head'\] is not supported",
    "other-method": r"peft_type is 'IA3'",
    "other-rank": r"r=5, alpha=8 do not fit matrices of rank 4",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_or_unfitting_adapter_is_refused_by_file_and_reason(
    tmp_path: Path, how: str
) -> None:
    directory = make_adapter(tmp_path)
    damage(directory, how)
    with pytest.raises(AdapterInvalid, match=DAMAGES[how]) as refused:
        load_adapter("v1", directory, decoder())
    assert str(directory) in str(refused.value)


def test_an_adapter_of_another_base_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterInvalid, match=r"do not fit|does not have"):
        load_adapter("v1", make_adapter(tmp_path, "qwen3"), decoder("gpt2"))


async def test_a_corrupted_adapter_leaves_other_requests_unaffected(tmp_path: Path) -> None:
    wanted = generate(tiny_model(), PROMPT, 100)
    broken = make_adapter(tmp_path)
    damage(broken, "truncated")
    async with running(tiny_model()) as engine:
        other = asyncio.create_task(
            tokens_of(engine, request(PROMPT, max_tokens=100, ignore_eos=True))
        )
        with pytest.raises(AdapterInvalid, match="is damaged"):
            await engine.load_adapter("v1", broken)
        assert engine.stats().adapters == ()
        assert await other == wanted


def test_two_loads_of_one_directory_have_different_uids(tmp_path: Path) -> None:
    directory, base = make_adapter(tmp_path), decoder()
    first: LoraAdapter = load_adapter("v1", directory, base)
    assert first.uid != load_adapter("v1", directory, base).uid
