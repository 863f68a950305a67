"""float32, greedy: the torch runtime says token for token what `transformers` generate says, while
batches mix, prompts are computed in chunks, beginnings are found in the cache, sequences are
preempted, drafts are verified, and adapters differ."""

import argparse
import asyncio
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from bench.engine.opened import TUNED, Turn, agent_turns, opened, prompt_of, say_all
from bench.product import CACHE
from chatbot.base_models import BUILT_IN, load_base
from chatbot.engine.interface import GenerationRequest, SamplingParams
from chatbot.manifest import ADAPTER
from chatbot.worker.lessons import version_scope

TOKENS = 48  # of each reply, also beyond its end: so that replies grow out of the cache
AT_ONCE = 24
# small, so that 16 replies beside each other do not fit and some are preempted
TIGHT = {"kv_cache_tokens": 1280, "prefill_chunk_tokens": 192, "max_running": 16}
RANDOM = ("random-8", "random-16")  # adapters made here: names end with their rank


def make_adapter(model: Any, rank: int, directory: Path) -> None:
    """A random adapter that changes what is said."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(rank)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear"
    )
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    wrapped.save_pretrained(directory)
    wrapped.unload()


def wanted(
    model: Any, prompts: list[tuple[int, ...]], names: list[str | None], folders: dict[str, Path]
) -> list[list[int]]:
    """What generate says, each prompt alone, with the adapter that it names."""
    from peft import PeftModel

    (first, folder), *others = folders.items()
    tuned = PeftModel.from_pretrained(model, str(folder), adapter_name=first)
    for name, folder in others:
        tuned.load_adapter(str(folder), adapter_name=name)
    tuned.eval()
    model.generation_config.eos_token_id = None
    found = []
    for prompt, chosen in zip(prompts, names, strict=True):
        if chosen is None:
            with tuned.disable_adapter():
                found.append(_generate(tuned, prompt))
        else:
            tuned.set_adapter(chosen)
            found.append(_generate(tuned, prompt))
    return found


def _generate(model: Any, prompt: tuple[int, ...]) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
        )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


async def check(options: argparse.Namespace) -> dict[str, Any]:
    turns = agent_turns(options.data, 8 if options.quick else 100)
    model, _ = load_base(BUILT_IN, CACHE, torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        folders = {name: Path(scratch) / name for name in RANDOM}
        for name, folder in folders.items():
            await asyncio.to_thread(make_adapter, model, int(name.rpartition("-")[2]), folder)
        if options.version is not None:
            folders[TUNED] = options.version / ADAPTER
        names: list[str | None] = [None, *folders]
        found, stats = await _engine(turns, names, folders, options.version)
        prompts = [prompt for prompt, _, _ in found]
        chosen = [name for _, name, _ in found]
        reference = await asyncio.to_thread(wanted, model, prompts, chosen, folders)
    same = [ours == theirs for (_, _, ours), theirs in zip(found, reference, strict=True)]
    happened = stats["preemptions"] and stats["cached_tokens"] and stats["accepted_drafts"]
    return {
        "prompts": len(same),
        "identical": sum(same),
        "adapters": len(folders),
        **stats,
        "passed": all(same) and (bool(happened) or options.quick),
    }


async def _engine(
    turns: Iterable[Turn], names: list[str | None], folders: dict[str, Path], version: Path | None
) -> tuple[list[tuple[tuple[int, ...], str | None, list[int]]], dict[str, int]]:
    """(prompt, adapter, tokens said) of each turn, and what happened meanwhile."""
    async with opened("torch", version, dtype="float32", **TIGHT) as engine:
        for name, folder in folders.items():
            if name != TUNED:
                await engine.load_adapter(name, folder)
        prompts = [prompt_of(engine, turn.messages) for turn in turns]
        # two turns of one dialogue have the same adapter, so that one finds the other's blocks
        chosen = [names[index // 2 % len(names)] for index in range(len(prompts))]
        sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
        requests = [
            GenerationRequest(f"r{n}", prompt, sampling, name, draft_scopes=(version_scope(TUNED),))
            for n, (prompt, name) in enumerate(zip(prompts, chosen, strict=True))
        ]
        said = await say_all(engine, requests, AT_ONCE)
        stats = engine.stats()
    happened = {
        "preemptions": stats.preemptions,
        "cached_tokens": stats.prefill_tokens_cached,
        "accepted_drafts": sum(count.accepted for count in stats.drafts),
        "blocks_left": stats.blocks_used,
    }
    rows = zip(prompts, chosen, [one.tokens for one in said], strict=True)
    return list(rows), happened
