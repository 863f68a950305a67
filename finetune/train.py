"""A training run: LoRA on the agent's words, interruptible at any step.

The loop is our own (docs/decisions/0003-training.md says why): it computes logits only where the
agent speaks, pads almost nothing, and a resumed run repeats the uninterrupted one's losses.
"""

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatbot.base_models import base_directory, load_base
from chatbot.engine.torch.device import resolve_device, resolve_dtype
from chatbot.errors import RunInterrupted, TrainingError
from chatbot.prompt import EncodedDialogue
from finetune.batches import MicroBatch, epoch_order, micro_batches
from finetune.checkpoint import Position, latest_checkpoint, load_checkpoint, save_checkpoint
from finetune.config import TrainConfig, save_config
from finetune.dataset import (
    Source,
    Stats,
    build_dataset,
    encode_dialogues,
    fingerprint,
    load_dialogues,
    load_held_out,
    redact_held_out,
    save_dialogues,
)
from finetune.lora import attach, fused, logits_at, save_adapter, trainable
from finetune.progress import OnProgress, Progress
from finetune.storage import whole_directory, write_whole
from finetune.transcripts import Dialogue
from finetune.transcripts.readers import Rejects
from finetune.transcripts.sets import held_out as held_out_by_hash

HELD_OUT_SHARE = 0.1
ShouldStop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Prepared:
    """The data of a run, fixed when it began: a resumed run reads it back."""

    train: list[Dialogue]
    held_out: list[Dialogue]
    fingerprint: str
    stats: Stats


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run. ``adapter`` is a PEFT directory in the run's own directory."""

    adapter: Path
    prepared: Prepared
    steps: int
    losses: list[tuple[int, float]]  # (step, mean loss per agent token)
    tokens: int  # trained on, without padding
    seconds: float
    device: str
    dtype: str

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def use_threads(count: int) -> None:
    """CPU threads of this process's arithmetic; 0 leaves torch's choice, one per core."""
    if count:
        torch.set_num_threads(count)


def train(
    config: TrainConfig,
    on_progress: OnProgress,
    should_stop: ShouldStop,
    reviewed: Iterable[dict[str, Any]] = (),
) -> RunResult:
    """Tune an adapter, or go on where the run of this id stopped. A run that is done is not
    repeated: its result is read back.

    Args:
        should_stop: asked before every step.
        reviewed: canonical dialogues of reviewed conversations; read when the run begins.

    Raises:
        RunInterrupted: ``should_stop`` said so; a checkpoint is written.
        TranscriptError, TrainingError, BaseModelUnavailable, StorageFull.
    """
    use_threads(config.threads)
    on_progress(Progress("prepare", message="reading transcripts"))
    prepared = prepare(config, reviewed)
    device = resolve_device(config.device)
    dtype, _why = resolve_dtype(config.dtype, device)
    on_progress(Progress("prepare", message=f"loading {config.base}"))
    base_directory(
        config.base, config.data_dir, lambda text: on_progress(Progress("prepare", message=text))
    )
    model, tokenizer = load_base(config.base, config.data_dir, dtype, str(device))
    samples = encode_dialogues(prepared.train, tokenizer, context_limit(config, model))
    if not samples:
        raise TrainingError("no agent turn fits into the model's context: nothing to learn")
    _count_tokens(config, prepared.stats, samples)
    tuned = attach(model, config.base, config.rank, config.alpha, config.dropout, config.seed)
    loop = _Loop(config, tuned, samples, prepared.fingerprint, on_progress, should_stop)
    position = loop.run()
    adapter = config.directory / "adapter"
    if not adapter.exists():
        with whole_directory(adapter) as scratch:
            save_adapter(tuned, scratch)
    return RunResult(
        adapter,
        prepared,
        position.step,
        position.losses,
        position.tokens,
        position.seconds,
        str(device),
        str(dtype).removeprefix("torch."),
    )


def context_limit(config: TrainConfig, model: Any) -> int:
    """Tokens of the longest sample: as configured, but no more than the model has positions."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return min(config.max_tokens, positions) if isinstance(positions, int) else config.max_tokens


def prepare(config: TrainConfig, reviewed: Iterable[dict[str, Any]] = ()) -> Prepared:
    """Build the run's data and keep it in the run's directory, or read back what was kept.

    Raises:
        TranscriptError, StorageFull.
    """
    folder = config.directory
    kept = (folder / "train.jsonl", folder / "held-out.jsonl", folder / "dataset.json")
    if kept[2].is_file():
        train_set, held_out = load_dialogues(kept[0]), load_dialogues(kept[1])
        stats = Stats(**json.loads(kept[2].read_text(encoding="utf-8")))
        return Prepared(train_set, held_out, fingerprint(train_set), stats)
    save_config(config)
    held_source = Source(config.eval_data, config.format_name, config.columns, config.eval_limit)
    source = Source(config.data, config.format_name, config.columns, config.limit)
    with Rejects(folder / "rejects-held-out.jsonl") as rejects:
        raw = load_held_out(held_source if config.eval_data else source, rejects)
    if not config.eval_data:
        # no file of held-out dialogues: a tenth of the others is kept out, chosen by hash
        raw = [dialogue for dialogue in raw if held_out_by_hash(dialogue, HELD_OUT_SHARE)]
    with Rejects(folder / "rejects.jsonl") as rejects:
        dataset = build_dataset(source, rejects, reviewed, raw)
    redacted = redact_held_out(raw, dataset.contacts)
    save_dialogues(kept[0], dataset.dialogues)
    save_dialogues(kept[1], redacted)
    # written last: its presence says that the other two are whole
    write_whole(kept[2], json.dumps(dataset.stats.as_dict(), ensure_ascii=False).encode())
    return Prepared(dataset.dialogues, redacted, dataset.fingerprint, dataset.stats)


def _count_tokens(config: TrainConfig, stats: Stats, samples: list[EncodedDialogue]) -> None:
    stats.tokens = sum(len(sample.ids) for sample in samples)
    stats.agent_tokens = sum(sum(sample.loss_mask) for sample in samples)
    text = json.dumps(stats.as_dict(), ensure_ascii=False)
    write_whole(config.directory / "dataset.json", text.encode())


def learning_rate(step: int, total: int, peak: float, warmup_share: float) -> float:
    """Rate of optimizer step ``step`` (from 0): linear warm-up, then half a cosine to zero
    (arXiv 1608.03983 without restarts)."""
    warmup = max(1, round(total * warmup_share))
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * share))


def micro_loss(tuned: Any, batch: MicroBatch) -> torch.Tensor:
    """Summed cross-entropy (nats) over the agent's tokens of a micro-batch."""
    device = tuned.device
    where = batch.where.to(device)
    with logits_at(tuned, where):
        logits = tuned(input_ids=batch.ids.to(device), use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(
        logits.float(), batch.targets.to(device), reduction="sum"
    )


class _Loop:
    def __init__(
        self,
        config: TrainConfig,
        tuned: Any,
        samples: list[EncodedDialogue],
        data_fingerprint: str,
        on_progress: OnProgress,
        should_stop: ShouldStop,
    ) -> None:
        self._config = config
        self._tuned = tuned
        self._samples = samples
        self._fingerprint = data_fingerprint
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._folder = config.directory / "checkpoints"
        self._parameters = trainable(tuned)
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._per_epoch = math.ceil(len(samples) / config.batch_size)
        planned = math.ceil(self._per_epoch * config.epochs)
        self._total = min(planned, config.max_steps or planned)
        self._order: tuple[int, list[list[int]]] = (-1, [])
        self._began = 0.0
        self._seconds_before = 0.0

    def run(self) -> Position:
        found = latest_checkpoint(self._folder)
        position = Position()
        if found is not None:
            position = load_checkpoint(found, self._tuned, self._optimizer, self._fingerprint)
        self._began, self._seconds_before = time.monotonic(), position.seconds
        self._tuned.train()
        with fused(self._tuned):
            while position.step < self._total:
                if self._should_stop():
                    self._interrupt(position)
                self._step(position)
                done = position.step == self._total
                if done or position.step % self._config.checkpoint_steps == 0:
                    self._save(position)
        self._tuned.eval()
        return position

    def _step(self, position: Position) -> None:
        config = self._config
        rate = learning_rate(position.step, self._total, config.learning_rate, config.warmup_share)
        samples = [self._samples[index] for index in self._indices(position.step)]
        batches = micro_batches(samples, config.micro_tokens)
        count = sum(len(batch.targets) for batch in batches)
        total = 0.0
        for batch in batches:
            loss = micro_loss(self._tuned, batch) / count
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        if not math.isfinite(total):
            raise TrainingError(
                f"the loss is {total} at step {position.step + 1}: the run diverged. "
                "Start again with a lower learning rate."
            )
        torch.nn.utils.clip_grad_norm_(self._parameters, config.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        position.step += 1
        position.tokens += sum(batch.tokens for batch in batches)
        position.seconds = self._seconds_before + time.monotonic() - self._began
        position.losses.append((position.step, total))
        self._report(position, total, rate)

    def _indices(self, step: int) -> list[int]:
        epoch, place = divmod(step, self._per_epoch)
        if self._order[0] != epoch:
            lengths = [len(sample.ids) for sample in self._samples]
            order = epoch_order(lengths, self._config.batch_size, self._config.seed, epoch)
            self._order = (epoch, order)
        return self._order[1][place]

    def _report(self, position: Position, loss: float, rate: float) -> None:
        per_step = position.seconds / position.step
        self._on_progress(
            Progress(
                "train",
                position.step,
                self._total,
                loss=loss,
                learning_rate=rate,
                tokens_per_s=position.tokens / position.seconds if position.seconds else None,
                seconds_left=per_step * (self._total - position.step),
            )
        )

    def _save(self, position: Position) -> None:
        save_checkpoint(self._folder, self._tuned, self._optimizer, position, self._fingerprint)

    def _interrupt(self, position: Position) -> None:
        if position.step:
            self._save(position)
        raise RunInterrupted(
            f"run {self._config.run_id} stopped after step {position.step} of {self._total}; "
            f"`frontdesk train --resume {self._config.run_id}` goes on from there",
            run_id=self._config.run_id,
        )
