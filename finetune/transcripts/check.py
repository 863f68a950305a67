"""What is in transcript files, and what is wrong with them."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune.transcripts.model import Dialogue, Rejected
from finetune.transcripts.readers import Rejects, read_transcripts
from finetune.transcripts.redact import redact_dialogue
from finetune.transcripts.sets import Seen
from finetune.transcripts.table import Columns

LANGUAGE_SAMPLE = 300  # dialogues whose language is guessed: it takes milliseconds each
LANGUAGE_CHARS = 1000
LISTED = 20  # rejected lines that the report itself lists; all are in the rejects file
CHARS_PER_TOKEN = 4  # of English text with common tokenizers, where none is at hand

CountTokens = Callable[[Dialogue], int]


@dataclass
class Quality:
    """The quality report. ``tokens_counted`` is False where tokens are estimated from characters.
    ``one_sided``: no word of a visitor. ``languages``: of ``languages_of`` dialogues."""

    files: list[str]
    dialogues: int = 0
    messages: int = 0
    agent_turns: int = 0
    roles: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    tokens_counted: bool = True
    median_tokens: int = 0
    longest_tokens: int = 0
    too_long: int = 0
    max_tokens: int = 0
    duplicates: dict[str, int] = field(default_factory=dict)
    one_sided: int = 0
    nothing_to_learn: int = 0
    personal_data: dict[str, int] = field(default_factory=dict)
    dialogues_with_personal_data: int = 0
    languages: dict[str, int] = field(default_factory=dict)
    languages_of: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    rejected_lines: list[dict[str, Any]] = field(default_factory=list)
    rejects_file: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_files(
    paths: Sequence[Path],
    rejects: Rejects,
    *,
    format_name: str | None = None,
    columns: Columns | None = None,
    count_tokens: CountTokens | None = None,
    max_tokens: int = 2048,
) -> Quality:
    """Read the files once, line by line, and count.

    Raises:
        TranscriptError: a file cannot be read at all.
    """
    quality = Quality([str(path) for path in paths], max_tokens=max_tokens)
    quality.tokens_counted = count_tokens is not None
    tally = _Tally(quality, count_tokens or _estimate)
    for path in paths:
        for item in read_transcripts(path, format_name, columns):
            if isinstance(item, Rejected):
                rejects.add(path, item)
                tally.reject(path, item)
            else:
                tally.add(item)
    tally.finish()
    quality.rejected = dict(rejects.counts)
    quality.rejects_file = str(rejects.path) if rejects.total else ""
    return quality


def _estimate(dialogue: Dialogue) -> int:
    return sum(len(message["content"]) // CHARS_PER_TOKEN + 4 for message in dialogue.messages)


class _Tally:
    def __init__(self, quality: Quality, count_tokens: CountTokens) -> None:
        self._quality = quality
        self._count_tokens = count_tokens
        self._seen = Seen()
        self._roles: Counter[str] = Counter()
        self._duplicates: Counter[str] = Counter()
        self._personal: Counter[str] = Counter()
        self._languages: Counter[str] = Counter()
        self._lengths: list[int] = []
        self._detector = _LanguageDetector()

    def reject(self, path: Path, rejected: Rejected) -> None:
        if len(self._quality.rejected_lines) < LISTED:
            self._quality.rejected_lines.append(
                {
                    "file": str(path),
                    "line": rejected.line,
                    "reason": str(rejected.reason),
                    "detail": rejected.detail,
                }
            )

    def add(self, dialogue: Dialogue) -> None:
        quality = self._quality
        roles = Counter(str(message["role"]) for message in dialogue.messages)
        quality.dialogues += 1
        quality.messages += len(dialogue.messages)
        quality.agent_turns += roles["assistant"]
        quality.one_sided += not roles["user"]
        quality.nothing_to_learn += not dialogue.learns
        self._roles += roles
        self._lengths.append(self._count_tokens(dialogue))
        duplicate = self._seen.add(dialogue)
        if duplicate is not None:
            self._duplicates[duplicate] += 1
        _, found = redact_dialogue(dialogue)
        self._personal += found
        quality.dialogues_with_personal_data += bool(found)
        if quality.languages_of < LANGUAGE_SAMPLE:
            quality.languages_of += 1
            self._languages[self._detector.guess(dialogue)] += 1

    def finish(self) -> None:
        quality, lengths = self._quality, sorted(self._lengths)
        quality.roles = dict(self._roles)
        quality.duplicates = dict(self._duplicates)
        quality.personal_data = dict(self._personal)
        quality.languages = dict(self._languages.most_common())
        if lengths:
            quality.tokens = sum(lengths)
            quality.median_tokens = lengths[len(lengths) // 2]
            quality.longest_tokens = lengths[-1]
            quality.too_long = sum(length > quality.max_tokens for length in lengths)


class _LanguageDetector:
    """langdetect with a fixed seed of its own: the same text gives the same answer."""

    def __init__(self) -> None:
        from langdetect import PROFILES_DIRECTORY
        from langdetect.detector_factory import DetectorFactory

        self._factory = DetectorFactory()
        self._factory.set_seed(0)
        self._factory.load_profile(PROFILES_DIRECTORY)

    def guess(self, dialogue: Dialogue) -> str:
        """An ISO 639-1 code, "unknown" for texts without words."""
        from langdetect.lang_detect_exception import LangDetectException

        detector = self._factory.create()
        detector.append(_said(dialogue.messages)[:LANGUAGE_CHARS])
        try:
            return str(detector.detect())
        except LangDetectException:
            return "unknown"


def _said(messages: Iterable[Any]) -> str:
    return " ".join(m["content"] for m in messages if m["role"] in ("user", "assistant"))
