"""``frontdesk evaluate``: a report without a training run."""

import time
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from chatbot.bootstrap import open_database, open_versions
from chatbot.errors import AdapterInvalid, RequestRefused
from chatbot.settings import Settings
from chatbot.versions import Versions
from finetune.config import TrainConfig
from finetune.dataset import Source, fingerprint, load_held_out, redact_held_out
from finetune.evaluate import sample_turns
from finetune.pipeline import Jury, Subject, live_subject
from finetune.publish import write_report
from finetune.report import build_report
from finetune.terminal import shown_progress, stop_on_interrupt
from finetune.transcripts.readers import Rejects


def judge_files(
    config: TrainConfig,
    settings: Settings,
    version: str | None,
    adapter: Path | None,
    folder: Path,
    console: Console,
) -> dict[str, Any]:
    """Judge ``version`` (or ``adapter``, or what is live) beside live and base on
    ``config.eval_data``; write report.json and report.html into ``folder`` and give the report.

    Raises:
        RequestRefused: both a version and an adapter.
        NotFound, VersionCorrupt, AdapterInvalid, TranscriptError, StorageFull, RunInterrupted.
    """
    if version is not None and adapter is not None:
        raise RequestRefused("give either --version or --adapter")
    with closing(open_database(settings)) as database:
        versions = open_versions(settings, database)
        live = live_subject(versions, config.base)
        candidate = _candidate(versions, live, version, adapter)
    source = Source(config.eval_data, config.format_name, config.columns, config.eval_limit)
    with Rejects(folder / "rejects.jsonl") as rejects:
        held_out = redact_held_out(load_held_out(source, rejects), frozenset())
    turns = sample_turns(held_out, config.eval_turns)
    with shown_progress(console) as draw, stop_on_interrupt(console) as stop:
        judged = Jury(config, held_out, turns, draw, stop.is_set).all(candidate, live)
    report = build_report(
        created_at=int(time.time() * 1000),
        base=config.base,
        dataset={"fingerprint": fingerprint(held_out), "dialogues": len(held_out)},
        run_settings={"eval_turns": config.eval_turns, "eval_limit": config.eval_limit},
        training=None,
        judged=judged,
        held_out=held_out,
        turns=turns,
        settings=settings,
    )
    write_report(folder, report)
    return report


def _candidate(
    versions: Versions, live: Subject | None, version: str | None, adapter: Path | None
) -> Subject:
    if adapter is not None:
        if not (adapter / "adapter_config.json").is_file():
            raise AdapterInvalid(f"{adapter} holds no adapter_config.json: it is no PEFT adapter")
        return Subject(adapter.name, adapter)
    if version is not None:
        return Subject(version, versions.verify(version))
    if live is None:
        raise RequestRefused("nothing of the configured base model is live: give --version")
    return live
