"""Checkpoints of a run: everything that makes the rest of it go as if it had not stopped."""

import io
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from chatbot.errors import TrainingError
from finetune.lora import restore, save_adapter
from finetune.storage import whole_directory, write_file

STATE = "state.pt"


@dataclass
class Position:
    """How far a run has come. The learning rate and the order of the data are functions of
    ``step``, so they need no state of their own."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # trained on, without padding
    seconds: float = 0.0
    losses: list[tuple[int, float]] = field(default_factory=list)


def save_checkpoint(
    folder: Path, tuned: Any, optimizer: torch.optim.Optimizer, position: Position, fingerprint: str
) -> Path:
    """Write ``step-<n>`` under ``folder``, then remove older ones.

    Raises:
        StorageFull: the checkpoint before is still there.
    """
    target = folder / f"step-{position.step:06d}"
    if not target.exists():
        state = {
            "step": position.step,
            "tokens": position.tokens,
            "seconds": position.seconds,
            "losses": position.losses,
            "fingerprint": fingerprint,
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),  # empty without CUDA
        }
        buffer = io.BytesIO()  # torch hides the operating system's error when it writes a file
        torch.save(state, buffer)
        with whole_directory(target) as scratch:
            save_adapter(tuned, scratch / "adapter")
            write_file(scratch / STATE, buffer.getvalue())
    for other in folder.glob("step-*"):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("step-*"), default=None)


def load_checkpoint(
    directory: Path, tuned: Any, optimizer: torch.optim.Optimizer, fingerprint: str
) -> Position:
    """Bring adapter, optimizer and random numbers back to where they were.

    Raises:
        TrainingError: damaged, or of a run on other data.
        AdapterInvalid: of another base model.
    """
    try:
        state = torch.load(directory / STATE, weights_only=True)
    except Exception as error:
        raise TrainingError(
            f"the checkpoint {directory} cannot be read ({error}). Start a new run."
        ) from error
    if state["fingerprint"] != fingerprint:
        raise TrainingError(
            f"the checkpoint {directory} belongs to other training data. Start a new run."
        )
    restore(tuned, directory / "adapter")
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    if len(state["random_cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["random_cuda"])
    losses = [(int(step), float(loss)) for step, loss in state["losses"]]
    return Position(state["step"], state["tokens"], state["seconds"], losses)
