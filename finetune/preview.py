"""What the next training run from the console would use, without training.

The server calls :func:`preview` through the entry point ``frontdesk.training``.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chatbot.base_models import base_directory, load_tokenizer
from chatbot.errors import BaseModelUnavailable, TranscriptError
from chatbot.prompt import Tokenizer, encode_dialogue
from chatbot.settings import Settings
from finetune.dataset import Dataset, Source, build_dataset, load_held_out
from finetune.transcripts import Dialogue
from finetune.transcripts.readers import Rejects
from finetune.transcripts.sets import held_out

WHOLE = 1_000_000  # tokens: no dialogue is cut when it is only counted


def preview(
    run_settings: dict[str, Any], reviewed: Iterable[dict[str, Any]], settings: Settings
) -> dict[str, Any]:
    """Counts, redaction and fingerprint of the data set that a run with ``run_settings`` (as given
    to it, e.g. ``{"limit": 400}``) would build. What keeps a run from starting is in ``reason``.

    Raises:
        Nothing for data that cannot be used: that is an answer, not an error.
    """
    try:
        dataset = _dataset(run_settings, reviewed, settings)
    except TranscriptError as error:
        return _answer(None, 0, str(error))
    try:
        tokens = _tokens(dataset.dialogues, settings)
    except BaseModelUnavailable as error:
        return _answer(dataset, 0, str(error))
    return _answer(dataset, tokens, None)


def _dataset(
    run_settings: dict[str, Any], reviewed: Iterable[dict[str, Any]], settings: Settings
) -> Dataset:
    source = Source(_files(settings.train_data), limit=run_settings.get("limit"))
    with tempfile.TemporaryDirectory() as folder:
        # a run keeps its rejected lines; here they are only counted
        with Rejects(Path(folder) / "held-out.jsonl") as rejects:
            raw = _held_out(source, settings, rejects)
        with Rejects(Path(folder) / "rejects.jsonl") as rejects:
            return build_dataset(source, rejects, reviewed, raw)


def _held_out(source: Source, settings: Settings, rejects: Rejects) -> list[Dialogue]:
    """As :func:`finetune.train.prepare` chooses them."""
    if settings.train_eval_data:
        return load_held_out(Source(_files(settings.train_eval_data)), rejects)
    from finetune.train import HELD_OUT_SHARE  # needs torch, which counting does not

    everything = load_held_out(source, rejects)
    return [dialogue for dialogue in everything if held_out(dialogue, HELD_OUT_SHARE)]


def _files(name: str) -> tuple[Path, ...]:
    return (Path(name),) if name else ()


def _tokens(dialogues: Iterable[Dialogue], settings: Settings) -> int:
    tokenizer: Tokenizer = load_tokenizer(base_directory(settings.base_model, settings.data_dir))
    return sum(
        len(encode_dialogue(list(dialogue.messages), tokenizer, WHOLE).ids)
        for dialogue in dialogues
    )


def _answer(dataset: Dataset | None, tokens: int, reason: str | None) -> dict[str, Any]:
    stats = dataset.stats if dataset else None
    return {
        "dialogues": stats.dialogues if stats else 0,
        "from_file": stats.from_files if stats else 0,
        "from_reviews": stats.from_reviews if stats else 0,
        "corrections": stats.corrections if stats else 0,
        "tokens": tokens,
        "redaction": {
            "counts": stats.redactions if stats else {},
            "examples": stats.redaction_examples if stats else [],
        },
        "fingerprint": dataset.fingerprint if dataset else "",
        "can_start": reason is None,
        "reason": reason,
    }
