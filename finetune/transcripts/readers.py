"""Which reader reads which file, and where the rejected lines go."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO

from chatbot.errors import TranscriptError
from finetune.storage import write_errors_named
from finetune.transcripts.files import Record, json_records
from finetune.transcripts.model import Dialogue, Rejected
from finetune.transcripts.openai_chat import read_openai
from finetune.transcripts.sharegpt import read_sharegpt
from finetune.transcripts.table import Columns, read_table

Reader = Callable[[Path, Columns | None], Iterator[Dialogue | Rejected]]

READERS: dict[str, Reader] = {
    "openai": lambda path, _columns: read_openai(path),
    "sharegpt": lambda path, _columns: read_sharegpt(path),
    "csv": read_table,
}
TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
KEYS = {"messages": "openai", "conversations": "sharegpt"}
LINES_SNIFFED = 50


def read_transcripts(
    path: Path, format_name: str | None = None, columns: Columns | None = None
) -> Iterator[Dialogue | Rejected]:
    """Everything in the file, in its order: dialogues, and lines rejected with their reason.

    Raises:
        TranscriptError: no such file, an empty one, an unknown format, missing columns.
    """
    name = format_name or sniff(path)
    if name not in READERS:
        raise TranscriptError(f"unknown transcript format {name!r}: choose {', '.join(READERS)}")
    return READERS[name](path, columns)


def sniff(path: Path) -> str:
    """The format's name, by the file's name or by its first readable record.

    Raises:
        TranscriptError: none of the formats fits.
    """
    if path.name.lower().endswith(TABLES):
        return "csv"
    seen = 0
    for record in islice(json_records(path), LINES_SNIFFED):
        seen += 1
        if isinstance(record, Record) and isinstance(record.value, dict):
            for key, name in KEYS.items():
                if key in record.value:
                    return name
    if not seen:
        raise TranscriptError(f"{path} is empty: there are no transcripts in it")
    raise TranscriptError(
        f"{path}: the first {seen} lines are no transcript format that is known here. "
        f"Give the format by name ({', '.join(READERS)}) if it is one of them."
    )


@dataclass
class Rejects:
    """Counts rejected lines and writes each to a file, which exists only if there are any."""

    path: Path
    counts: Counter[str] = field(default_factory=Counter)
    first: str = ""  # the first rejected line and what is wrong with it
    _file: IO[str] | None = None

    def __enter__(self) -> "Rejects":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def why(self) -> str:
        """For an error: how many lines were rejected, and the first of them. Empty for none."""
        if not self.total:
            return ""
        lines = "1 line was" if self.total == 1 else f"{self.total:,} lines were"
        return f"{lines} rejected, {'first' if self.total > 1 else 'namely'} {self.first}"

    def add(self, source: Path, rejected: Rejected) -> None:
        """Count the line and append it to the rejects file as JSON.

        Raises:
            InputError, StorageFull: there can be no such file.
        """
        self.counts[rejected.reason] += 1
        self.first = self.first or f"{source}, {rejected}"
        if self._file is None:
            with write_errors_named(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("w", encoding="utf-8")
        entry = {
            "file": str(source),
            "line": rejected.line,
            "reason": str(rejected.reason),
            "detail": rejected.detail,
        }
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
