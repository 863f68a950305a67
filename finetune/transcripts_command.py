"""``frontdesk transcripts``: check files, convert them to the canonical form."""

import gzip
import json
from pathlib import Path
from typing import IO, Annotated, cast

import typer
from rich.console import Console

from chatbot.base_models import base_tokenizer
from chatbot.errors import BaseModelUnavailable, TranscriptError
from chatbot.prompt import encode_dialogue
from chatbot.settings import load_settings
from chatbot.terminal import console as terminal
from chatbot.terminal import print_rows
from finetune.storage import require_target, whole_file, write_errors_named
from finetune.transcripts import Columns, Dialogue, Rejected, canonical_line, read_transcripts
from finetune.transcripts.check import CountTokens, Quality, check_files
from finetune.transcripts.readers import READERS, Rejects
from finetune.transcripts.redact import business_contacts, redact_dialogue

transcripts = typer.Typer(help="Transcript files.", no_args_is_help=True)

Format = Annotated[
    str | None, typer.Option("--format", help=f"{', '.join(READERS)}; found out if not given.")
]
ColumnOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        help="Column of a table, e.g. conversation=ticket_id, role=author, text=body, order=time.",
    ),
]
RoleOptions = Annotated[
    list[str] | None,
    typer.Option("--role", help="What a value of the role column means, e.g. Clerk=assistant."),
]
RejectsFile = Annotated[
    Path | None, typer.Option("--rejects", help="Where rejected lines are written.")
]


def parse_columns(columns: list[str] | None, roles: list[str] | None) -> Columns | None:
    """Columns from ``name=value`` options; None when there are none.

    Raises:
        TranscriptError: not of that form, or an unknown name.
    """
    if not columns and not roles:
        return None
    given = dict(_pair(item, "--column") for item in columns or [])
    known = ("conversation", "role", "text", "order")
    for name in given:
        if name not in known:
            raise TranscriptError(f"--column {name}=…: choose {', '.join(known)}")
    meanings = {**Columns().roles, **dict(_pair(item, "--role") for item in roles or [])}
    return Columns(**given, roles=meanings)


def _pair(item: str, option: str) -> tuple[str, str]:
    name, separator, value = item.partition("=")
    if not separator or not name or not value:
        raise TranscriptError(f"{option} {item}: write name=value")
    return name, value


@transcripts.command()
def check(
    files: Annotated[list[Path], typer.Argument(help="Transcript files.")],
    format_name: Format = None,
    column: ColumnOptions = None,
    role: RoleOptions = None,
    rejects: RejectsFile = None,
    max_tokens: Annotated[int, typer.Option(help="Longer dialogues count as too long.")] = 2048,
    data_dir: Annotated[Path | None, typer.Option(help="Where everything is kept.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a quality report. Rejected lines are written to a file beside the first one.

    The exit code is 1 when there is nothing to learn from.
    """
    settings = load_settings(data_dir=data_dir)
    count, why_not = _token_counter(settings.base_model, settings.data_dir)
    rejected_to = rejects or _beside(files[0])
    require_target(rejected_to)
    with Rejects(rejected_to) as writer:
        quality = check_files(
            files,
            writer,
            format_name=format_name,
            columns=parse_columns(column, role),
            count_tokens=count,
            max_tokens=max_tokens,
        )
        why_nothing = writer.why
    if as_json:
        print(json.dumps(quality.as_dict(), indent=2, ensure_ascii=False))
    else:
        _show(quality, why_not, terminal())
    if quality.dialogues == quality.nothing_to_learn:
        silent = f"{quality.nothing_to_learn:,} dialogues have no agent turn to learn"
        reasons = [silent] if quality.dialogues else []
        reasons += [why_nothing] if why_nothing else []
        names = ", ".join(quality.files)
        raise TranscriptError(f"nothing to learn from in {names}: {'; '.join(reasons)}")


def _beside(path: Path) -> Path:
    """In the working directory: transcripts may lie where nobody may write."""
    return Path(f"{path.name.removesuffix('.gz')}.rejects.jsonl")


def _token_counter(base: str, data_dir: Path) -> tuple[CountTokens | None, str]:
    try:
        tokenizer = base_tokenizer(base, data_dir)
    except BaseModelUnavailable as error:
        return None, str(error)

    def count(dialogue: Dialogue) -> int:
        return len(encode_dialogue(list(dialogue.messages), tokenizer, 10**9).ids)

    return count, ""


def _show(quality: Quality, why_not: str, console: Console) -> None:
    tokens = "tokens" if quality.tokens_counted else "tokens (estimated)"
    rows: list[tuple[str, int]] = [
        ("dialogues", quality.dialogues),
        ("messages", quality.messages),
        *((f"  {name}", count) for name, count in quality.roles.items()),
        (tokens, quality.tokens),
        ("  median dialogue", quality.median_tokens),
        ("  longest dialogue", quality.longest_tokens),
        (f"  longer than {quality.max_tokens:,}", quality.too_long),
        *((f"duplicates, {name}", count) for name, count in quality.duplicates.items()),
        ("without a visitor's word", quality.one_sided),
        ("with nothing to learn", quality.nothing_to_learn),
        ("with personal data", quality.dialogues_with_personal_data),
        *((f"  {name}", count) for name, count in quality.personal_data.items()),
        *((f"language {name}", count) for name, count in quality.languages.items()),
        ("rejected lines", sum(quality.rejected.values())),
        *((f"  {name}", count) for name, count in quality.rejected.items()),
    ]
    shown = [[name, f"{count:,}"] for name, count in rows]
    print_rows(console, ["what", "count"], shown, ", ".join(quality.files))
    if quality.languages_of < quality.dialogues:
        console.print(f"Languages are those of the first {quality.languages_of} dialogues.")
    if why_not:
        console.print(f"Tokens are estimated: {why_not}", markup=False)
    for line in quality.rejected_lines:
        console.print(
            f"{line['file']}, line {line['line']}: {line['reason']} ({line['detail']})",
            markup=False,
        )
    if quality.rejects_file:
        console.print(f"All rejected lines: {quality.rejects_file}", markup=False)


@transcripts.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Transcript file.")],
    target: Annotated[Path, typer.Argument(help="Canonical JSON lines; .gz is packed.")],
    format_name: Format = None,
    column: ColumnOptions = None,
    role: RoleOptions = None,
    rejects: RejectsFile = None,
    redact: Annotated[bool, typer.Option("--redact", help="Replace personal data.")] = False,
) -> None:
    """Write a file in the canonical form. Rejected lines go to TARGET.rejects.jsonl."""
    rejected_to = rejects or target.with_name(f"{target.name}.rejects.jsonl")
    require_target(target)
    require_target(rejected_to)
    columns = parse_columns(column, role)
    contacts: frozenset[str] | None = None
    if redact:  # a first reading finds what is the business's own
        items = read_transcripts(source, format_name, columns)
        contacts = business_contacts(item for item in items if isinstance(item, Dialogue))
    written = 0
    with (
        write_errors_named(target),
        Rejects(rejected_to) as writer,
        whole_file(target) as draft,
        _writer(draft, target.suffix == ".gz") as out,
    ):
        for item in read_transcripts(source, format_name, columns):
            if isinstance(item, Rejected):
                writer.add(source, item)
                continue
            dialogue = item if contacts is None else redact_dialogue(item, contacts)[0]
            out.write(canonical_line(dialogue).encode() + b"\n")
            written += 1
    rejected = f"; {writer.total:,} lines rejected, see {writer.path}" if writer.total else ""
    print(f"{written:,} dialogues written to {target}{rejected}")


def _writer(path: Path, packed: bool) -> IO[bytes]:
    opened = gzip.open(path, "wb") if packed else path.open("wb")  # noqa: SIM115
    return cast(IO[bytes], opened)
