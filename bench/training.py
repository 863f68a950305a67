"""Tokens/s of a training step: ours beside a plain loop of the same model, batch and type.

    python -m bench.training [--quick] [--data FILE] [--data-dir DIR] [--threads N] [--rounds N]

The loops see the same dialogues in the same batches with the same adapter and optimizer. "plain" is
what one writes first: a padded batch, an attention mask, peft's own layers, logits at every
position, and the loss on the agent's tokens. "lean" is the same with logits at the agent's tokens
only. They take turns, so that whatever else the machine does disturbs them alike. Tokens are those
of the dialogues, without padding; ours may leave out what comes after an agent's last word.

The last line is JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from chatbot.base_models import BUILT_IN, load_base
from chatbot.engine.torch.device import resolve_device, resolve_dtype
from chatbot.prompt import EncodedDialogue
from finetune.batches import epoch_order, micro_batches
from finetune.config import TrainConfig
from finetune.dataset import encode_dialogues
from finetune.lora import attach, fused, logits_at, trainable
from finetune.train import micro_loss, use_threads
from finetune.transcripts import Dialogue, read_transcripts

SHOP = Path(__file__).parents[1] / "examples" / "shop" / "transcripts.jsonl"


def plain_step(
    tuned: Any, samples: Sequence[EncodedDialogue], optimizer: Any, lean: bool = False
) -> float:
    """Forward, loss, backward and update of one padded batch; the mean loss."""
    length = max(len(sample.ids) for sample in samples)
    ids = torch.zeros((len(samples), length), dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, sample in enumerate(samples):
        size = len(sample.ids)
        ids[row, :size] = torch.tensor(sample.ids)
        mask[row, :size] = 1
        learnt = torch.tensor(sample.loss_mask, dtype=torch.bool)
        labels[row, :size][learnt] = ids[row, :size][learnt]
    device = tuned.device
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "use_cache": False}
    if lean:
        where = torch.zeros_like(ids, dtype=torch.bool)
        where[:, :-1] = labels[:, 1:] != -100
        with logits_at(tuned, where.to(device)):
            logits = tuned(**inputs).logits[0]
        targets = ids[:, 1:][where[:, :-1]].to(device)
        loss = torch.nn.functional.cross_entropy(logits.float(), targets)
    else:
        loss = tuned(**inputs, labels=labels.to(device)).loss
    loss.backward()
    _update(tuned, optimizer)
    return float(loss.item())


def our_step(tuned: Any, samples: Sequence[EncodedDialogue], optimizer: Any) -> float:
    """The same as a training run does it."""
    batches = micro_batches(samples, TrainConfig(run_id="bench").micro_tokens)
    count = sum(len(batch.targets) for batch in batches)
    total = 0.0
    with fused(tuned):
        for batch in batches:
            loss = micro_loss(tuned, batch) / count
            loss.backward()
            total += loss.item()
    _update(tuned, optimizer)
    return total


def _update(tuned: Any, optimizer: Any) -> None:
    torch.nn.utils.clip_grad_norm_(trainable(tuned), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Let the loops take turns over the same steps; tokens/s of each, median over rounds."""
    use_threads(arguments.threads)
    device = resolve_device(arguments.device)
    dtype, why = resolve_dtype(arguments.dtype, device)
    print(f"{device}, {dtype} ({why}), {torch.get_num_threads()} threads")
    steps = _steps(arguments)
    # each loop has a model of its own: all start from the same weights and go the same way
    models = {name: _model(arguments, dtype, str(device)) for name in LOOPS}
    optimizers = {name: torch.optim.AdamW(trainable(m), lr=1e-4) for name, m in models.items()}
    rates: dict[str, list[float]] = {name: [] for name in LOOPS}
    losses: dict[str, list[float]] = {name: [] for name in LOOPS}
    for number, samples in enumerate(steps):
        tokens = sum(len(sample.ids) for sample in samples)
        for name in sorted(LOOPS, reverse=bool(number % 2)):
            began = time.perf_counter()
            loss = LOOPS[name](models[name], samples, optimizers[name])
            seconds = time.perf_counter() - began
            losses[name].append(loss)
            if number:  # the first step warms up
                rates[name].append(tokens / seconds)
            print(f"step {number} {name:5}: {tokens} tokens, {tokens / seconds:.0f}/s, {loss:.4f}")
    result: dict[str, Any] = {
        "bench": "training",
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "batch": arguments.batch,
        "steps": len(steps) - 1,
    }
    for name in LOOPS:
        result[f"{name}_tokens_per_s"] = round(statistics.median(rates[name]), 1)
    for name in ("plain", "lean"):
        ratios = [ours / other for ours, other in zip(rates["ours"], rates[name], strict=True)]
        result[f"speedup_over_{name}"] = round(statistics.median(ratios), 3)
    differences = [abs(a - b) for a, b in zip(losses["plain"], losses["ours"], strict=True)]
    return {**result, "largest_loss_difference": round(max(differences), 5)}


LOOPS: dict[str, Callable[[Any, Sequence[EncodedDialogue], Any], float]] = {
    "plain": plain_step,
    "lean": partial(plain_step, lean=True),
    "ours": our_step,
}


def _model(arguments: argparse.Namespace, dtype: torch.dtype, device: str) -> Any:
    model, _ = load_base(arguments.base, arguments.data_dir, dtype, device)
    return attach(model, arguments.base, rank=16, alpha=32, dropout=0.0, seed=0).train()


def _steps(arguments: argparse.Namespace) -> list[list[EncodedDialogue]]:
    _, tokenizer = load_base(arguments.base, arguments.data_dir, torch.float32)
    found = read_transcripts(arguments.data)
    dialogues = [item for item in found if isinstance(item, Dialogue)][:400]
    samples = encode_dialogues(dialogues, tokenizer, 2048)
    order = epoch_order([len(s.ids) for s in samples], arguments.batch, seed=0, epoch=0)
    return [[samples[index] for index in step] for step in order[: arguments.rounds + 1]]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=SHOP)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--base", default=BUILT_IN)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quick", action="store_true", help="two rounds of two dialogues each")
    parsed = parser.parse_args(arguments)
    if parsed.quick:
        parsed.rounds, parsed.batch = 2, 2
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    print(json.dumps(measure(parse(arguments))))


if __name__ == "__main__":
    main()
