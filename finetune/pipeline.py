"""A run from its config to a version's directory: train, evaluate, report, publish."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from chatbot.base_models import load_base
from chatbot.bootstrap import artifacts_dir
from chatbot.engine.torch.device import resolve_device, resolve_dtype
from chatbot.errors import RunActive
from chatbot.settings import Settings
from chatbot.versions import Versions, base_version_id
from finetune.config import TrainConfig
from finetune.dataset import conversation_ids, fingerprint
from finetune.evaluate import MAX_REPLY_TOKENS, Metrics, Turn, evaluate_model, sample_turns
from finetune.generate import Reply
from finetune.lora import load_adapter
from finetune.progress import OnProgress, Progress
from finetune.publish import adapter_hash, publish, version_id
from finetune.report import Judged, build_report
from finetune.storage import only_one, write_whole
from finetune.train import RunResult, ShouldStop, train, use_threads
from finetune.transcripts import Dialogue

RESULT = "result.json"


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to judge: the base model with an adapter, or bare."""

    version: str
    adapter: Path | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A version that was published, and its report."""

    version_id: str
    directory: Path
    report: dict[str, Any]


def live_subject(versions: Versions, base: str) -> Subject | None:
    """What answers visitors now, if it is of the same base model. Raises VersionCorrupt."""
    live = versions.live()
    return Subject(live.id, versions.verify(live.id)) if live.base_model == base else None


def run_pipeline(
    config: TrainConfig,
    settings: Settings,
    live: Subject | None,
    on_progress: OnProgress,
    should_stop: ShouldStop,
    reviewed: Iterable[dict[str, Any]] = (),
) -> Outcome:
    """Do the whole run, or the rest of it. A run that was published before is read back.

    Raises:
        RunInterrupted: stopped on request; the run can be resumed.
        RunActive: another process works on this run.
        FrontdeskError: what the steps raise.
    """
    busy = RunActive(f"run {config.run_id} is being worked on already", run_id=config.run_id)
    with only_one(config.directory / "lock", busy):
        done = _published(config, settings)
        if done is not None:
            return done
        return _run(config, settings, live, on_progress, should_stop, reviewed)


def _run(
    config: TrainConfig,
    settings: Settings,
    live: Subject | None,
    on_progress: OnProgress,
    should_stop: ShouldStop,
    reviewed: Iterable[dict[str, Any]],
) -> Outcome:
    result = train(config, on_progress, should_stop, reviewed)
    now = datetime.now(UTC)
    created_at = int(now.timestamp() * 1000)
    name = version_id(result.adapter, now)
    held_out = result.prepared.held_out
    turns = sample_turns(held_out, config.eval_turns)
    judge = Jury(config, held_out, turns, on_progress, should_stop)
    judged = judge.all(Subject(name, result.adapter), live)
    on_progress(Progress("publish", message=f"writing {name}"))
    report = build_report(
        created_at=created_at,
        base=config.base,
        dataset=_dataset(result),
        run_settings=config.settings,
        training=_training(result),
        judged=judged,
        held_out=held_out,
        turns=turns,
        settings=settings,
    )
    directory = publish(
        artifacts_dir(settings),
        name,
        result.adapter,
        report,
        base_model=config.base,
        created_at=created_at,
        dataset_fingerprint=result.prepared.fingerprint,
        # not in the report, which is read by people
        dataset={
            **_dataset(result),
            "conversations": conversation_ids(result.prepared.train),
        },
        settings=config.settings,
        run_id=config.run_id,
    )
    write_whole(config.directory / RESULT, json.dumps({"version_id": name}).encode())
    shutil.rmtree(config.directory / "checkpoints", ignore_errors=True)
    return Outcome(name, directory, report)


def _published(config: TrainConfig, settings: Settings) -> Outcome | None:
    path = config.directory / RESULT
    if not path.is_file():
        return None
    name = json.loads(path.read_text(encoding="utf-8"))["version_id"]
    directory = artifacts_dir(settings) / "versions" / name
    report = json.loads((directory / "report.json").read_text(encoding="utf-8"))
    return Outcome(name, directory, report)


def _dataset(result: RunResult) -> dict[str, Any]:
    stats = result.prepared.stats.as_dict()
    stats.pop("redaction_examples")  # they hold what was redacted
    return {"fingerprint": result.prepared.fingerprint, **stats}


def _training(result: RunResult) -> dict[str, Any]:
    return {
        "steps": result.steps,
        "tokens": result.tokens,
        "tokens_per_s": result.tokens_per_s,
        "seconds": result.seconds,
        "device": result.device,
        "dtype": result.dtype,
        "threads": torch.get_num_threads(),
        "loss": [[step, loss] for step, loss in result.losses],
    }


class Jury:
    """Judges models on the same dialogues and turns. What it found is kept in
    ``<data_dir>/evaluations``, so that the base model is judged once and not at every run."""

    def __init__(
        self,
        config: TrainConfig,
        held_out: Sequence[Dialogue],
        turns: Sequence[Turn],
        on_progress: OnProgress,
        should_stop: ShouldStop,
    ) -> None:
        self._config = config
        self._held_out = held_out
        self._turns = turns
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._device = resolve_device(config.device)
        self._dtype, _ = resolve_dtype(config.dtype, self._device)
        use_threads(config.threads)

    def all(self, candidate: Subject, live: Subject | None) -> dict[str, Judged | None]:
        """Candidate, live and base; a model that is two of them is judged once.

        Raises:
            RunInterrupted, BaseModelUnavailable, AdapterInvalid, StorageFull.
        """
        base = Subject(base_version_id(self._config.base), None)
        found = {"candidate": self.judge(candidate), "base": self.judge(base)}
        if live is None:
            return {**found, "live": None}
        same = [
            key for key, subject in (("candidate", candidate), ("base", base)) if subject == live
        ]
        return {**found, "live": found[same[0]] if same else self.judge(live)}

    def judge(self, subject: Subject) -> Judged:
        path = self._config.data_dir / "evaluations" / f"{self._key(subject)}.json"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            return _from_json(kept, subject.version)
        model, tokenizer = load_base(
            self._config.base, self._config.data_dir, self._dtype, str(self._device)
        )
        if subject.adapter is not None:
            model = load_adapter(model, subject.adapter)
        metrics, replies = evaluate_model(
            subject.version,
            model,
            tokenizer,
            self._held_out,
            self._turns,
            self._on_progress,
            self._should_stop,
        )
        judged = Judged(metrics, replies)
        write_whole(path, json.dumps(_to_json(judged), ensure_ascii=False).encode())
        return judged

    def _key(self, subject: Subject) -> str:
        parts = (
            self._config.base,
            adapter_hash(subject.adapter) if subject.adapter else "",
            fingerprint(self._held_out),
            str(len(self._turns)),
            str(MAX_REPLY_TOKENS),
            str(self._dtype),
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _to_json(judged: Judged) -> dict[str, Any]:
    replies = [
        [turn.dialogue, turn.message, asdict(reply)] for turn, reply in judged.replies.items()
    ]
    return {"metrics": judged.metrics.as_dict(), "replies": replies}


def _from_json(kept: Mapping[str, Any], version: str) -> Judged:
    replies = {Turn(row[0], row[1]): Reply(**row[2]) for row in kept["replies"]}
    return Judged(Metrics(**{**kept["metrics"], "version": version}), replies)
