"""What a training run is told to do, kept in its directory so that it can be resumed."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from chatbot.base_models import BUILT_IN
from chatbot.errors import NotFound, TrainingError
from finetune.storage import write_whole
from finetune.transcripts import Columns

CONFIG_FILE = "config.json"


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """All choices of a run. The defaults are those of the measurements in
    ``docs/decisions/0003-training.md``."""

    run_id: str
    data_dir: Path = Path("data")
    base: str = BUILT_IN
    data: tuple[Path, ...] = ()
    eval_data: tuple[Path, ...] = ()
    format_name: str | None = None
    columns: Columns | None = None
    limit: int | None = None  # dialogues taken from the files; None: all
    eval_limit: int | None = None
    eval_turns: int = 400  # replies written for the report
    # -- optimisation
    epochs: float = 1.0  # passes over the data
    max_steps: int | None = None  # end earlier than the epochs say
    batch_size: int = 4  # dialogues per optimizer step
    learning_rate: float = 1e-3
    warmup_share: float = 0.05
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    seed: int = 0
    # -- machine
    max_tokens: int = 2048  # longest sample; longer dialogues become several
    micro_tokens: int = 1024  # computed at once (1 MB of memory each); more per step are added up
    checkpoint_steps: int = 25
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        rules = {
            "epochs": 0 < self.epochs <= 100,
            "max_steps": self.max_steps is None or self.max_steps >= 1,
            "limit": self.limit is None or self.limit >= 1,
            "eval_limit": self.eval_limit is None or self.eval_limit >= 1,
            "eval_turns": self.eval_turns >= 1,
            "batch_size": self.batch_size >= 1,
            "learning_rate": 0 < self.learning_rate <= 1,
            "warmup_share": 0 <= self.warmup_share < 1,
            "clip_norm": self.clip_norm > 0,
            "rank": 1 <= self.rank <= 1024,
            "alpha": self.alpha > 0,
            "dropout": 0 <= self.dropout < 1,
            "max_tokens": self.max_tokens >= 64,
            "micro_tokens": self.micro_tokens >= 1,
            "checkpoint_steps": self.checkpoint_steps >= 1,
            "dtype": self.dtype in ("auto", "float32", "bfloat16"),
        }
        for name, holds in rules.items():
            if not holds:
                raise TrainingError(f"{name}={getattr(self, name)!r} is out of range")

    @property
    def directory(self) -> Path:
        """Where the run keeps its files: config, data, progress, checkpoints."""
        return self.data_dir / "runs" / self.run_id

    @property
    def settings(self) -> dict[str, Any]:
        """What shaped the adapter, for manifest and report."""
        names = (
            "epochs max_steps batch_size learning_rate warmup_share weight_decay clip_norm rank "
            "alpha dropout seed max_tokens limit"
        )
        return {name: getattr(self, name) for name in names.split()}


def save_config(config: TrainConfig) -> None:
    """Write the run's config.json. Raises StorageFull."""
    values = {key: _plain(value) for key, value in asdict(config).items()}
    text = json.dumps(values, indent=2)
    write_whole(config.directory / CONFIG_FILE, text.encode())


def load_config(data_dir: Path, run_id: str) -> TrainConfig:
    """The config of an earlier run.

    Raises:
        NotFound: no such run; names those that are there.
        TrainingError: its config.json is damaged.
    """
    path = data_dir / "runs" / run_id / CONFIG_FILE
    if not path.is_file():
        known = sorted(entry.parent.name for entry in (data_dir / "runs").glob(f"*/{CONFIG_FILE}"))
        there = f"There are: {', '.join(known[-5:])}." if known else "There are no runs yet."
        raise NotFound(f"there is no run {run_id} in {data_dir / 'runs'}. {there}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        for name in ("data", "eval_data"):
            values[name] = tuple(Path(item) for item in values[name])
        if values["columns"] is not None:
            values["columns"] = Columns(**values["columns"])
        known_fields = {field.name for field in fields(TrainConfig)}
        kept = {name: value for name, value in values.items() if name in known_fields}
        return TrainConfig(**{**kept, "data_dir": data_dir, "run_id": run_id})
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path} is damaged ({error}). Start a new run.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
