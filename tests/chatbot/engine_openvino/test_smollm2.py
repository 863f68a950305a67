"""The real base model in int8 against torch in bfloat16: quality, adapters, streams."""

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

pytest.importorskip("openvino", reason="needs the extra: pip install 'frontdesk[openvino]'")

from chatbot.base_models import load_base, load_tokenizer
from chatbot.engine.factory import create_engine
from chatbot.engine.openvino.engine import OpenVinoEngine, skeleton
from chatbot.engine.openvino.export import Exported, load_or_export
from chatbot.engine.openvino.graph import BLOCK_SIZE
from chatbot.engine.openvino.runner import OpenVinoRunner
from chatbot.engine.torch.adapters import LoraAdapter, load_adapter
from chatbot.engine.torch.scheduler import Step, Work
from chatbot.engine.torch.sequence import Sequence
from chatbot.prompt import encode_dialogue, encode_prompt
from chatbot.settings import Settings
from tests.chatbot.engine.helpers import collect, request

pytestmark = pytest.mark.model
NAME = "smollm2-135m"
BLOCKS = 32
Dialogue = tuple[list[int], list[int]]  # ids, and 1 where an agent wrote


@pytest.fixture(scope="module")
def exported(data_dir_with_base: Path, base_dir: Path) -> Exported:
    end_id = load_tokenizer(base_dir).eos_token_id
    return load_or_export(NAME, base_dir, data_dir_with_base, 4096, end_id, lambda _: None)


@pytest.fixture(scope="module")
def runner(exported: Exported) -> OpenVinoRunner:
    return OpenVinoRunner(exported, BLOCKS, "auto", 2)


@pytest.fixture(scope="module")
def dialogues(transcripts: Path, base_dir: Path) -> list[Dialogue]:
    tokenizer = load_tokenizer(base_dir)
    found = []
    with gzip.open(transcripts / "star-val.jsonl.gz", "rt") as lines:
        for line, _ in zip(lines, range(5), strict=False):
            dialogue = encode_dialogue(json.loads(line)["messages"], tokenizer, 400)
            found.append((list(dialogue.ids), list(dialogue.loss_mask)))
    return found


def ours(runner: OpenVinoRunner, ids: list[int], adapter: LoraAdapter | None) -> torch.Tensor:
    """Logits [len(ids) - 1, vocabulary] of every position, computed a position a row."""
    sequence = Sequence("r", tuple(ids), 1, adapter=adapter)
    sequence.blocks = list(range(-(-len(ids) // BLOCK_SIZE)))
    rows = []
    for start in range(0, len(ids) - 1, 128):
        end = min(start + 128, len(ids) - 1)
        rows.append(runner.score(Step((Work(sequence, start, end, False, False),), (), ())))
    return torch.cat(rows)


def theirs(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([ids[:-1]])).logits[0]
    return logits.float()


def compare(
    pairs: list[tuple[torch.Tensor, torch.Tensor]], dialogues: list[Dialogue]
) -> tuple[float, float]:
    """(perplexity of the first over that of the second, share of positions at which both find
    the same token best), over what agents wrote."""
    losses, same = [], []
    for (left, right), (ids, mask) in zip(pairs, dialogues, strict=True):
        target, agent = torch.tensor(ids[1:]), torch.tensor(mask[1:]).bool()
        both = [
            torch.nn.functional.cross_entropy(logits[agent], target[agent], reduction="none")
            for logits in (left, right)
        ]
        losses.append(both[0] - both[1])
        same.append(left[agent].argmax(-1) == right[agent].argmax(-1))
    return torch.cat(losses).mean().exp().item(), torch.cat(same).float().mean().item()


def test_int8_is_as_good_as_bfloat16(
    runner: OpenVinoRunner, dialogues: list[Dialogue], data_dir_with_base: Path
) -> None:
    model, _ = load_base(NAME, data_dir_with_base, torch.bfloat16)
    pairs = [(ours(runner, ids, None), theirs(model, ids)) for ids, _ in dialogues]
    ratio, same = compare(pairs, dialogues)
    print(f"perplexity {ratio:.4f} of bfloat16's, same best token {same:.4f}")
    assert ratio < 1.015  # a few dialogues; over forty it is 1 %, see the decision record
    assert same > 0.93


def test_an_adapter_does_what_peft_does(
    runner: OpenVinoRunner,
    exported: Exported,
    dialogues: list[Dialogue],
    data_dir_with_base: Path,
    tmp_path: Path,
) -> None:
    model, _ = load_base(NAME, data_dir_with_base, torch.bfloat16)
    torch.manual_seed(1)
    peft = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
    )
    for key, parameter in peft.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.12)
    peft.save_pretrained(tmp_path)
    adapter = load_adapter("v1", tmp_path, skeleton(exported))
    some = dialogues[:3]
    wanted = [theirs(peft, ids) for ids, _ in some]
    found = [ours(runner, ids, adapter) for ids, _ in some]
    without = [ours(runner, ids, None) for ids, _ in some]
    ratio, same = compare(list(zip(found, wanted, strict=True)), some)
    _, same_without = compare(list(zip(without, wanted, strict=True)), some)
    print(f"adapter: ratio {ratio:.4f}, same {same:.4f}; without it {same_without:.4f}")
    assert abs(ratio - 1) < 0.03
    assert same > 0.9
    assert same_without < same - 0.1  # it is applied, and it matters
    assert isinstance(peft, PeftModel)


async def test_chats_on_the_real_model(data_dir_with_base: Path) -> None:
    settings = Settings(
        engine="openvino", data_dir=data_dir_with_base, kv_cache_tokens=4096, engine_threads=2
    )
    engine = create_engine(settings)
    assert isinstance(engine, OpenVinoEngine)
    await engine.start()
    try:
        system = {"role": "system", "content": settings.system_prompt}
        asked = {"role": "user", "content": "What is the capital of France?"}
        prompt = encode_prompt([system, asked], engine.tokenizer, 1000)  # type: ignore[list-item]
        chunks = await collect(engine, request(prompt, max_tokens=24))
        text = "".join(chunk.text for chunk in chunks)
        assert "Paris" in text
        assert chunks[-1].finish_reason == "end"
        turn = [
            *prompt,
            *(token for chunk in chunks for token in chunk.token_ids),
            *engine.tokenizer.encode("\nAnd of Italy?", add_special_tokens=False),
        ]
        replies = await asyncio.gather(
            *(collect(engine, request(turn, max_tokens=12)) for _ in range(4))
        )
        assert len({tuple(t for c in reply for t in c.token_ids) for reply in replies}) == 1
        for reply in replies:
            assert reply[-1].usage is not None
            assert reply[-1].usage.cached_tokens >= len(prompt) - BLOCK_SIZE
    finally:
        await engine.close()
