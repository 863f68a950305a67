"""Training: it learns, it can be stopped at any step, and what it learns from is what it says."""

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from chatbot.errors import NotFound, RunInterrupted, StorageFull, TrainingError, TranscriptError
from finetune import storage
from finetune.batches import collate, epoch_order, micro_batches
from finetune.config import TrainConfig, load_config
from finetune.progress import Progress, ProgressLog
from finetune.train import RunResult, learning_rate, train
from tests.finetune.data import write_dialogues
from tests.finetune.models import chatml_tokenizer, save_gpt2, save_llama

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    data = write_dialogues(tmp_path / "train.jsonl", range(40))
    held_out = write_dialogues(tmp_path / "held-out.jsonl", range(100, 110))
    base = save_llama(tmp_path / "base")

    def make(run_id: str = "run-1", **changes: Any) -> TrainConfig:
        config = TrainConfig(
            run_id=run_id,
            data_dir=tmp_path / "data",
            base=str(base),
            data=(data,),
            eval_data=(held_out,),
            dtype="float32",
            threads=1,
            checkpoint_steps=3,
        )
        return replace(config, **changes)

    return make


def quiet(_progress: Progress) -> None:
    pass


def never() -> bool:
    return False


def after(steps: int) -> Callable[[], bool]:
    asked = iter(range(10**6))
    return lambda: next(asked) >= steps


def run(config: TrainConfig) -> RunResult:
    return train(config, quiet, never)


def test_the_loss_falls_and_an_adapter_is_written(make_config: MakeConfig) -> None:
    seen: list[Progress] = []
    result = train(make_config(epochs=4, learning_rate=1e-2), seen.append, never)
    losses = [loss for _, loss in result.losses]
    assert result.steps == 40
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    assert sorted(file.name for file in result.adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert {p.phase for p in seen} == {"prepare", "train"}
    last = seen[-1]
    assert (last.step, last.total_steps, last.seconds_left) == (40, 40, 0)
    assert last.tokens_per_s is not None
    assert last.tokens_per_s > 0


def test_gpt2_trains_too(tmp_path: Path, make_config: MakeConfig) -> None:
    result = run(make_config(base=str(save_gpt2(tmp_path / "gpt2")), epochs=4, learning_rate=1e-2))
    losses = [loss for _, loss in result.losses]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("stop_at", [0, 1, 4, 6, 9])
def test_an_interrupted_run_resumes_with_the_same_curve(
    stop_at: int, make_config: MakeConfig
) -> None:
    changes = {"epochs": 2, "max_steps": 12, "dropout": 0.1}
    whole = run(make_config("whole", **changes))
    config = make_config("cut", **changes)
    with pytest.raises(RunInterrupted, match=f"after step {stop_at} of 12.*--resume cut"):
        train(config, quiet, after(stop_at))
    resumed = run(load_config(config.data_dir, "cut"))
    assert resumed.losses == whole.losses
    assert resumed.tokens == whole.tokens
    for name, tensor in load_file(whole.adapter / "adapter_model.safetensors").items():
        other = load_file(resumed.adapter / "adapter_model.safetensors")[name]
        assert torch.equal(tensor, other)


def test_a_killed_run_goes_on_from_its_last_checkpoint(make_config: MakeConfig) -> None:
    whole = run(make_config("whole", max_steps=8))

    def killed(progress: Progress) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_config("cut", max_steps=8), killed, never)
    steps: list[int] = []
    resumed = train(make_config("cut", max_steps=8), lambda p: steps.append(p.step), never)
    assert next(step for step in steps if step) == 4  # checkpoints are every three steps
    assert resumed.losses == whole.losses


def test_a_finished_run_is_not_repeated(make_config: MakeConfig) -> None:
    first = run(make_config(max_steps=3))
    steps: list[int] = []
    again = train(make_config(max_steps=3), lambda p: steps.append(p.step), never)
    assert again.losses == first.losses
    assert set(steps) == {0}


def test_a_resumed_run_keeps_its_data(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(max_steps=6)
    with pytest.raises(RunInterrupted):
        train(config, quiet, after(2))
    write_dialogues(tmp_path / "train.jsonl", range(500, 505))
    assert run(config).prepared.stats.dialogues == 40


def test_only_agent_words_and_their_end_are_learnt(make_config: MakeConfig) -> None:
    result = run(make_config(max_steps=1))
    tokenizer = chatml_tokenizer()
    text = "".join(
        message["content"] + "<|im_end|>"
        for dialogue in result.prepared.train
        for message in dialogue.messages
        if message["role"] == "assistant"
    )
    expected = len(tokenizer.encode(text, add_special_tokens=False))
    assert result.prepared.stats.agent_tokens == expected


def test_a_full_disk_at_a_checkpoint_keeps_the_one_before(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(max_steps=9)
    with pytest.raises(RunInterrupted):
        train(config, quiet, after(3))
    before = sorted((config.directory / "checkpoints").rglob("*"))
    original = storage.write_file

    def full(path: Path, data: bytes) -> None:
        if path.name == "state.pt":
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        original(path, data)

    monkeypatch.setattr("finetune.checkpoint.write_file", full)
    with pytest.raises(StorageFull, match="no room left"):
        run(config)
    assert sorted((config.directory / "checkpoints").rglob("*")) == before
    monkeypatch.undo()
    assert run(config).losses == run(make_config("other", max_steps=9)).losses


def test_a_damaged_checkpoint_is_named(make_config: MakeConfig) -> None:
    config = make_config(max_steps=6)
    with pytest.raises(RunInterrupted):
        train(config, quiet, after(2))
    next(config.directory.glob("checkpoints/*/state.pt")).write_bytes(b"junk")
    with pytest.raises(TrainingError, match="cannot be read"):
        run(config)


def test_bad_runs_are_named(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"epochs=0 is out of range"):
        make_config(epochs=0)
    with pytest.raises(NotFound, match="there is no run nothing"):
        load_config(tmp_path / "data", "nothing")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(TranscriptError, match="is empty"):
        run(make_config("empty", data=(empty,)))
    with pytest.raises(TranscriptError, match="no dialogue to train on"):
        run(make_config("overlap", eval_data=(tmp_path / "train.jsonl",)))


def test_a_run_that_diverges_says_so(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "finetune.train.micro_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True)
    )
    with pytest.raises(TrainingError, match=r"loss is nan at step 1.*lower learning rate"):
        run(make_config())


def test_progress_lines_are_numbered_on(tmp_path: Path) -> None:
    path = tmp_path / "run" / "progress.jsonl"
    ProgressLog(path)(Progress("train", 1, 2, loss=0.5))
    ProgressLog(path)(Progress("train", 2, 2, loss=0.4))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["n"], line["step"], line["loss"]) for line in lines] == [(1, 1, 0.5), (2, 2, 0.4)]


# -- batches


def test_every_sample_is_in_one_step_and_neighbours_have_similar_lengths() -> None:
    lengths = [(i * 37) % 500 + 10 for i in range(103)]
    steps = epoch_order(lengths, 4, seed=1, epoch=0)
    assert sorted(i for step in steps for i in step) == list(range(103))
    assert steps == epoch_order(lengths, 4, seed=1, epoch=0)
    assert steps != epoch_order(lengths, 4, seed=1, epoch=1)
    spread = [max(lengths[i] for i in s) - min(lengths[i] for i in s) for s in steps]
    assert sum(spread) / len(spread) < 120  # of about 300 for steps drawn at random


def sample(*ids: int, learn: int) -> Any:
    from chatbot.prompt import EncodedDialogue

    return EncodedDialogue(list(ids), [0] * (len(ids) - learn) + [1] * learn, [], 1)


def test_padding_is_masked_by_position_also_where_its_id_is_the_end_token() -> None:
    batch = collate([sample(5, 6, 7, 0, learn=2), sample(8, 0, learn=1)], pad_id=0)
    assert batch.ids.tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
    assert batch.where.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert batch.targets.tolist() == [7, 0, 0]  # the end tokens are learnt, the padding is not
    assert batch.tokens == 6


def test_micro_batches_hold_their_budget_and_drop_what_teaches_nothing() -> None:
    trailing = sample(1, 2, 3, learn=2)
    trailing.ids.extend([9, 9])
    trailing.loss_mask.extend([0, 0])
    samples = [trailing, *(sample(*range(n), learn=1) for n in (3, 40, 8, 8))]
    batches = micro_batches(samples, 20)
    assert [list(batch.ids.shape) for batch in batches] == [[1, 40], [2, 8], [2, 3]]
    assert 9 not in batches[-1].ids


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, 1e-3, 0.05) for step in range(101)]
    assert rates[:5] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[100] == pytest.approx(0)
    assert learning_rate(0, 1, 1e-3, 0.05) == 1e-3
