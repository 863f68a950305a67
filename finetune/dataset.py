"""Transcripts and reviewed conversations -> the dialogues of one training run.

Read, compare with the held-out dialogues, de-duplicate, redact, count, and fingerprint.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chatbot.errors import TranscriptError
from chatbot.prompt import ChatMessage, EncodedDialogue, Tokenizer, encode_dialogue
from chatbot.redaction import redact
from chatbot.review_data import conversation_of
from finetune.storage import write_whole
from finetune.transcripts import Columns, Dialogue, Rejected, canonical_line, read_transcripts
from finetune.transcripts.model import DialogueError
from finetune.transcripts.openai_chat import dialogue_from
from finetune.transcripts.readers import Rejects
from finetune.transcripts.redact import business_contacts, redact_dialogue
from finetune.transcripts.sets import Seen

OVERLAP_MESSAGES = 6  # context that the next part of a dialogue too long gets from the one before
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Source:
    """Where transcripts come from, and how to read them."""

    files: tuple[Path, ...] = ()
    format_name: str | None = None
    columns: Columns | None = None
    limit: int | None = None  # dialogues taken from the files, in their order


@dataclass
class Stats:
    """What went in, what was left out, and why."""

    dialogues: int = 0
    from_files: int = 0
    from_reviews: int = 0
    corrections: int = 0
    agent_turns: int = 0
    tokens: int = 0
    agent_tokens: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    held_out: int = 0  # left out, since they are in the held-out set too
    nothing_to_learn: int = 0  # left out, since every agent turn has weight 0
    redactions: dict[str, int] = field(default_factory=dict)
    business_contacts: int = 0  # values not redacted: the business's own
    redaction_examples: list[dict[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Dialogues ready for training. ``fingerprint``: sha256 over their canonical lines, sorted,
    so that it says what was learnt from and not in which order it lay in files."""

    dialogues: list[Dialogue]
    fingerprint: str
    stats: Stats
    contacts: frozenset[str] = frozenset()


def build_dataset(
    source: Source,
    rejects: Rejects,
    reviewed: Iterable[dict[str, Any]] = (),
    held_out: Iterable[Dialogue] = (),
) -> Dataset:
    """The dialogues to train on: reviewed conversations first, then those of the files.

    A dialogue that equals a held-out one (also with other case, punctuation or system message)
    is left out and counted, wherever it comes from.

    Raises:
        TranscriptError: a file cannot be read, or nothing is left to train on.
    """
    stats, seen, barred = Stats(), Seen(), Seen()
    for dialogue in held_out:
        barred.add(dialogue)
    taken: list[Dialogue] = []
    for dialogue in _reviewed(reviewed):
        if _accept(dialogue, seen, barred, stats):
            taken.append(dialogue)
            stats.from_reviews += 1
            stats.corrections += bool(dialogue.meta.get("correction"))
    for dialogue in _from_files(source, rejects):
        if source.limit is not None and stats.from_files >= source.limit:
            break
        if _accept(dialogue, seen, barred, stats):
            taken.append(dialogue)
            stats.from_files += 1
    stats.rejected = dict(rejects.counts)
    if not taken:
        raise TranscriptError(_nothing_left(source, stats, rejects))
    contacts = business_contacts(taken)
    dialogues = list(_redacted(taken, contacts, stats))
    stats.dialogues = len(dialogues)
    stats.agent_turns = sum(dialogue.agent_turns for dialogue in dialogues)
    stats.business_contacts = len(contacts)
    return Dataset(dialogues, fingerprint(dialogues), stats, contacts)


def load_held_out(source: Source, rejects: Rejects) -> list[Dialogue]:
    """The held-out dialogues as they are, each once. Empty when no file is given.

    Raises:
        TranscriptError: a file cannot be read or holds no dialogue.
    """
    seen = Seen()
    found: list[Dialogue] = []
    for dialogue in _from_files(source, rejects):
        if source.limit is not None and len(found) >= source.limit:
            break
        if seen.add(dialogue) is None:
            found.append(dialogue)
    if source.files and not found:
        why = f": {rejects.why}" if rejects.total else ""
        raise TranscriptError(f"no dialogue to evaluate on in {_names(source)}{why}")
    return found


def redact_held_out(dialogues: Sequence[Dialogue], contacts: frozenset[str]) -> list[Dialogue]:
    """Redacted as the training data is: ``contacts`` are the values that were kept there."""
    kept = contacts | business_contacts(dialogues)
    return [redact_dialogue(dialogue, kept)[0] for dialogue in dialogues]


def fingerprint(dialogues: Iterable[Dialogue]) -> str:
    """sha256, hex, over the sorted canonical lines."""
    digest = hashlib.sha256()
    for line in sorted(canonical_line(dialogue) for dialogue in dialogues):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def conversation_ids(dialogues: Iterable[Dialogue]) -> list[str]:
    """The reviewed conversations that the dialogues come from, sorted: a version's manifest keeps
    them, so that it can be said later who taught it."""
    return sorted({name for d in dialogues if (name := conversation_of(d.meta))})


def save_dialogues(path: Path, dialogues: Iterable[Dialogue]) -> None:
    """Write canonical lines. Raises StorageFull."""
    text = "".join(canonical_line(dialogue) + "\n" for dialogue in dialogues)
    write_whole(path, text.encode())


def load_dialogues(path: Path) -> list[Dialogue]:
    """What :func:`save_dialogues` wrote. Raises TranscriptError: it is not there any more."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TranscriptError(f"{path} cannot be read: {error.strerror}") from error
    return [dialogue_from(json.loads(line)) for line in text.splitlines()]


def encode_dialogues(
    dialogues: Iterable[Dialogue], tokenizer: Tokenizer, max_tokens: int
) -> list[EncodedDialogue]:
    """Training samples of at most ``max_tokens`` tokens each. A longer dialogue becomes several:
    each agent turn is learnt once, after as much of what was said before it as there is room."""
    samples: list[EncodedDialogue] = []
    for dialogue in dialogues:
        for part in _parts(list(dialogue.messages), tokenizer, max_tokens):
            if any(part.loss_mask):
                samples.append(part)
    return samples


def _parts(
    messages: list[ChatMessage], tokenizer: Tokenizer, max_tokens: int
) -> Iterator[EncodedDialogue]:
    while True:
        part = encode_dialogue(messages, tokenizer, max_tokens)
        yield part
        done = part.next_message
        rest = messages[done:]
        if not any(message["role"] == "assistant" for message in rest):
            return
        head = messages[:1] if messages[0]["role"] == "system" and done > 0 else []
        # half of the room may go to what was said before; the next part must get further
        before = [_silent(m) for m in messages[max(len(head), done - OVERLAP_MESSAGES) : done]]
        while before and not _gets_on(
            [*head, *before, *rest], len(head) + len(before), tokenizer, max_tokens
        ):
            before.pop(0)
        messages = [*head, *before, *rest]


def _gets_on(messages: list[ChatMessage], old: int, tokenizer: Tokenizer, max_tokens: int) -> bool:
    """Whether the first ``old`` messages leave at least half of the room to the others."""
    size = len(encode_dialogue(messages[:old], tokenizer, 10**9).ids)
    part = encode_dialogue(messages, tokenizer, max_tokens)
    return size <= max_tokens // 2 and part.next_message > old and any(part.loss_mask)


def _silent(message: ChatMessage) -> ChatMessage:
    return {**message, "weight": 0} if message["role"] == "assistant" else message


def _reviewed(reviewed: Iterable[dict[str, Any]]) -> Iterator[Dialogue]:
    for number, value in enumerate(reviewed, start=1):
        try:
            yield dialogue_from(value)
        except DialogueError as error:
            raise TranscriptError(f"reviewed conversation {number}: {error.detail}") from error


def _from_files(source: Source, rejects: Rejects) -> Iterator[Dialogue]:
    for path in source.files:
        for item in read_transcripts(path, source.format_name, source.columns):
            if isinstance(item, Rejected):
                rejects.add(path, item)
            else:
                yield item


def _accept(dialogue: Dialogue, seen: Seen, barred: Seen, stats: Stats) -> bool:
    if dialogue in barred:
        stats.held_out += 1
        return False
    if not dialogue.learns:
        stats.nothing_to_learn += 1
        return False
    duplicate = seen.add(dialogue)
    if duplicate is not None:
        stats.duplicates[duplicate] = stats.duplicates.get(duplicate, 0) + 1
    return duplicate is None


def _redacted(
    dialogues: Sequence[Dialogue], contacts: frozenset[str], stats: Stats
) -> Iterator[Dialogue]:
    counts: Counter[str] = Counter()
    for dialogue in dialogues:
        clean, found = redact_dialogue(dialogue, contacts)
        if found and len(stats.redaction_examples) < EXAMPLES:
            stats.redaction_examples += _examples(dialogue, contacts)[:1]
        counts += found
        yield clean
    stats.redactions = dict(counts)


def _examples(dialogue: Dialogue, contacts: frozenset[str]) -> list[dict[str, str]]:
    changed = []
    for message in dialogue.messages:
        after, found = redact(message["content"], contacts)
        if found:
            changed.append({"before": message["content"][:300], "after": after[:300]})
    return changed


def _names(source: Source) -> str:
    return ", ".join(str(path) for path in source.files)


def _nothing_left(source: Source, stats: Stats, rejects: Rejects) -> str:
    parts = {
        "duplicates": sum(stats.duplicates.values()),
        "held out": stats.held_out,
        "without an agent turn to learn": stats.nothing_to_learn,
    }
    reasons = [f"{count} {what}" for what, count in parts.items() if count]
    found = ", ".join([*reasons, rejects.why] if rejects.total else reasons)
    where = _names(source) or "the reviewed conversations"
    return f"there is no dialogue to train on in {where}" + (f" ({found})" if found else "")
