"""Where a person's words went in training: the data sets of runs, and the versions made of them.

A run keeps its dialogues in ``<data_dir>/runs/<run id>/train.jsonl``; those of reviewed
conversations name theirs (``chatbot/review_data.py``), and a version's manifest lists them all.
"""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from chatbot.errors import StorageFull
from chatbot.record.database import Database
from chatbot.record.tables import Version
from chatbot.review_data import SOURCE, conversation_of

DATA_FILES = ("train.jsonl", "held-out.jsonl")
STATS = "dataset.json"
RESULT = "result.json"  # written when the run has made its version
UNFINISHED = ("checkpoints", "adapter")  # weights of a run that has not made its version yet


@dataclass(frozen=True, slots=True)
class ChangedRun:
    """A run whose data set lost dialogues. ``restarts``: its checkpoints had learned from them
    and are gone, so that it begins anew if it is resumed."""

    run_id: str
    dialogues: int
    restarts: bool


@dataclass(frozen=True, slots=True)
class Trained:
    """A version, and how many of the conversations asked about it was trained on. None: its data
    set holds reviewed conversations, and nobody knows any more which."""

    version_id: str
    state: str
    conversations: int | None


def runs_with(data_dir: Path, names: Collection[str]) -> list[str]:
    """Ids of the runs whose data sets hold one of these conversations."""
    wanted = set(names)
    return [
        folder.name
        for folder in _runs(data_dir)
        if any(conversation in wanted for conversation, _ in _lines(folder))
    ]


def forget(data_dir: Path, names: Collection[str]) -> list[ChangedRun]:
    """Take these conversations out of the data sets of all runs. Again, it does nothing.

    Raises:
        StorageFull: a file cannot be written; what was there before is there.
    """
    wanted = set(names)
    changed = []
    for folder in _runs(data_dir):
        dialogues = sum(_forget_in(folder / name, wanted) for name in DATA_FILES)
        if dialogues:
            changed.append(ChangedRun(folder.name, dialogues, _clean(folder)))
    return changed


def trained_on(
    database: Database,
    data_dir: Path,
    names: Collection[str],
    told: Mapping[str, int | None] | None = None,
) -> list[Trained]:
    """The versions that learned from one of these conversations, the oldest first; also those of
    which it cannot be said any more. ``told``: what was known of them before."""
    wanted = set(names)
    with database.session() as session:
        rows = session.scalars(select(Version).order_by(Version.created_at)).all()
    found = []
    for row in rows if wanted else ():
        known = _conversations(row, data_dir)
        before = (told or {}).get(row.id)
        if before:
            found.append(Trained(row.id, row.state, before))
        elif known is None:
            found.append(Trained(row.id, row.state, None))
        elif wanted & known:
            found.append(Trained(row.id, row.state, len(wanted & known)))
    return found


def _conversations(row: Version, data_dir: Path) -> set[str] | None:
    """Those that the version was trained on; None: not known."""
    dataset: dict[str, Any] = row.manifest.get("dataset") or {}
    listed = dataset.get("conversations")
    if isinstance(listed, list):
        return set(map(str, listed))
    if not dataset.get("from_reviews"):
        return set()
    # made before manifests listed them: its run may still have its data
    folder = data_dir / "runs" / str(row.manifest.get("run_id") or "-")
    lines = list(_lines(folder)) if (folder / STATS).is_file() else []
    return {conversation for conversation, _ in lines if conversation} if lines else None


def _runs(data_dir: Path) -> list[Path]:
    return sorted(path.parent for path in (data_dir / "runs").glob(f"*/{DATA_FILES[0]}"))


def _lines(folder: Path) -> Iterator[tuple[str, str]]:
    """(conversation or "", line) of each dialogue of a run."""
    for name in DATA_FILES:
        if (folder / name).is_file():
            yield from _dialogues(folder / name)


def _dialogues(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            meta: dict[str, Any] = {}
            if SOURCE in line:
                meta = json.loads(line).get("meta") or {}
            yield conversation_of(meta), line


def _forget_in(path: Path, wanted: set[str]) -> int:
    """How many lines the file lost."""
    if not path.is_file() or not any(name in wanted for name, _ in _dialogues(path)):
        return 0
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    lost = 0
    try:
        with draft.open("w", encoding="utf-8") as file:
            for name, line in _dialogues(path):
                if name in wanted:
                    lost += 1
                else:
                    file.write(line)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise StorageFull(f"{path} cannot be written anew: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
    return lost


def _clean(folder: Path) -> bool:
    """Remove what else of a run may hold or have learned the words; whether it must restart."""
    stats = folder / STATS
    if stats.is_file():
        values = json.loads(stats.read_text(encoding="utf-8"))
        values["redaction_examples"] = []  # texts before redaction
        draft = stats.with_name(f".{STATS}.{os.getpid()}.tmp")
        draft.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        draft.replace(stats)
    if (folder / RESULT).is_file():
        return False
    there = [folder / name for name in UNFINISHED if (folder / name).exists()]
    for path in there:
        shutil.rmtree(path, ignore_errors=True)
    return bool(there)
