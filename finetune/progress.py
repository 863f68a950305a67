"""Progress of a run: what the terminal draws, the console follows, and progress.jsonl keeps."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from chatbot.training_runs import Phase
from finetune.storage import full_disk_named


@dataclass(frozen=True, slots=True)
class Progress:
    """One line. In the phase "train" a step is an optimizer step, and ``tokens_per_s`` counts
    every token trained on, without padding; in others a step is whatever is counted there."""

    phase: Phase
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    learning_rate: float | None = None
    tokens_per_s: float | None = None
    seconds_left: float | None = None
    message: str = ""


OnProgress = Callable[[Progress], None]


class ProgressLog:
    """Appends lines to a run's progress.jsonl, numbered from 1; goes on where the file ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._n = len(path.read_text().splitlines()) if path.exists() else 0

    def __call__(self, progress: Progress) -> None:
        """Append a line. Raises StorageFull."""
        self._n += 1
        line = {"n": self._n, **asdict(progress), "at": int(time.time() * 1000)}
        with full_disk_named(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
