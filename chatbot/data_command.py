"""``frontdesk data``: export, find and erase people, holds and retention, without a running server
(the stores must be there). ``--json`` prints JSON on standard output and nothing else there."""

import asyncio
import getpass
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from chatbot.errors import InputError, RequestRefused, StorageFull
from chatbot.logs import configure_logs
from chatbot.record.database import Database
from chatbot.rights.export import Format
from chatbot.services import Services
from chatbot.settings import Settings, load_settings
from chatbot.terminal import console, print_facts, print_rows

data = typer.Typer(
    help="Stored conversations: export, retention, erasure, legal holds.", no_args_is_help=True
)
hold = typer.Typer(help="Legal holds: what may not be deleted.", no_args_is_help=True)
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where everything is kept.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
SiteOption = Annotated[str, typer.Option("--site", help="Name of the site.")]
Sub = Annotated[str, typer.Option("--sub", help="The customer's sub in the site's tokens.")]
VisitorOption = Annotated[str, typer.Option("--visitor", help="A visitor's id, e.g. v-3f…")]
ConversationOption = Annotated[
    str, typer.Option("--conversation", help="A conversation: whoever spoke in it.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is kept in the audit.")]
T = TypeVar("T")


def add_commands(app: typer.Typer) -> None:
    """Add ``data`` to the command."""
    data.add_typer(hold, name="hold")
    app.add_typer(data, name="data")


@data.command()
def export(
    out: Annotated[Path, typer.Argument(help="File to write; - is standard output.")],
    format_name: Annotated[
        Format | None, typer.Option("--format", help="jsonl or csv; by the file's name if absent.")
    ] = None,
    site: SiteOption = "",
    visitor: VisitorOption = "",
    status: Annotated[str, typer.Option(help="bot, waiting, human or closed.")] = "",
    since: Annotated[str, typer.Option(help="Last activity on or after this date (UTC).")] = "",
    until: Annotated[str, typer.Option(help="Last activity before this date (UTC).")] = "",
    redact: Annotated[bool, typer.Option(help="Replace e-mail addresses, numbers …")] = False,
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Write conversations to a file, as JSONL or CSV. The file is yours: no erasure reaches it."""
    from chatbot.record.audit import record
    from chatbot.rights.export import Wanted, count

    form = format_name or _format_of(out)
    wanted = Wanted(site, visitor, status, _date(since), _date(until))
    if str(out) != "-" and out.exists() and not force:
        raise InputError(f"{out} is there already: choose another name, or --force")
    with _record(_settings(data_dir)) as database:
        with database.session() as session:
            # before the first word leaves
            record(session, getpass.getuser(), "export.file", str(out)[-128:], data=asdict(wanted))
        total = count(database, wanted)
        done = _write_file(database, wanted, form, redact, out, total)
    _print({"file": str(out), "format": form, "conversations": done}, as_json, str(out) == "-")


@data.command()
def find(
    site: SiteOption = "",
    sub: Sub = "",
    visitor: VisitorOption = "",
    conversation: ConversationOption = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """What there is of a person."""

    async def work(services: Services) -> dict[str, Any]:
        from chatbot.rights.datasets import trained_on
        from chatbot.rights.people import describe

        person = await _person(services, site, sub, visitor, conversation)
        found = await describe(services.database, services.log, person)
        folder = services.settings.data_dir
        trained = trained_on(services.database, folder, found.conversations)
        return {
            **asdict(person),
            "known": found.known,
            "conversations": found.conversations,
            "messages": found.messages,
            "first_at": found.first_at,
            "last_at": found.last_at,
            "hold": _hold(found.hold) if found.hold else None,
            "versions": [asdict(version) for version in trained],
            "erasures": found.erasures,
        }

    _print(_with_services(data_dir, work), as_json)


@data.command()
def erase(
    reason: Reason,
    site: SiteOption = "",
    sub: Sub = "",
    visitor: VisitorOption = "",
    conversation: ConversationOption = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Erase a person everywhere, and print the receipt."""

    async def work(services: Services) -> dict[str, Any]:
        from chatbot.rights.erasure import Eraser
        from chatbot.rights.holds import require_no_hold

        person = await _person(services, site, sub, visitor, conversation)
        with services.database.session() as session:
            require_no_hold(session, person)  # before anybody types an id in vain
        if not yes:
            await asyncio.to_thread(_confirm, person.visitor)
        eraser = Eraser(services.database, services.log, services.runs, services.settings.data_dir)
        with _bar("erasing") as advance:
            receipt = await eraser.erase(
                person, actor=getpass.getuser(), reason=reason, on_progress=advance
            )
        return asdict(receipt)

    _print(_with_services(data_dir, work), as_json)


@data.command()
def receipt(erasure_id: str, data_dir: DataDir = None, as_json: Json = False) -> None:
    """The receipt of an erasure, with the versions that saw the person as they are now."""

    async def work(services: Services) -> dict[str, Any]:
        from chatbot.rights.erasure import Eraser

        eraser = Eraser(services.database, services.log, services.runs, services.settings.data_dir)
        return asdict(await eraser.receipt(erasure_id))

    _print(_with_services(data_dir, work), as_json)


Days = Annotated[str | None, typer.Option(help="A number; 'default' is as the installation.")]


@data.command()
def retention(
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    idle_close_hours: Days = None,
    log_days: Days = None,
    record_days: Days = None,
    apply: Annotated[bool, typer.Option(help="Delete what is due now, not in a minute.")] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Show or change how long a site's conversations are kept."""
    given = {
        "idle_close_hours": idle_close_hours,
        "log_days": log_days,
        "record_days": record_days,
    }

    async def work(services: Services) -> dict[str, Any]:
        from chatbot.rights.retention import set_site_retention, site_retention

        database, settings = services.database, services.settings
        now = await services.log.now_ms()
        found = site_retention(database, settings, site, now)
        changes = {name: _number(name, text) for name, text in given.items() if text is not None}
        if changes:
            own = type(found.own)(**{**asdict(found.own), **changes})
            set_site_retention(database, site, own, getpass.getuser())
            found = site_retention(database, settings, site, now)
        answer = asdict(found)
        answer["effective"] = answer.pop("holds")
        if apply:
            answer["deleted"] = await _delete_due(services, now, found.due)
        return answer

    _print(_with_services(data_dir, work), as_json)


async def _delete_due(services: Services, now: int, due: int) -> int:
    from chatbot.rights.retention import BATCH, delete_due

    deleted = 0
    with _bar("deleting") as advance:
        while True:
            count = await delete_due(services.database, services.log, services.settings, now)
            deleted += count
            advance(deleted, max(deleted, due))
            if count < BATCH:
                return deleted


@hold.command("place")
def place(
    reason: Reason,
    site: SiteOption = "",
    sub: Sub = "",
    visitor: VisitorOption = "",
    conversation: ConversationOption = "",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Let nothing of a person be deleted until the hold is lifted."""

    async def work(services: Services) -> dict[str, Any]:
        from chatbot.rights.holds import place_hold

        person = await _person(services, site, sub, visitor, conversation)
        row, created = place_hold(services.database, person, getpass.getuser(), reason)
        return {**_hold(row), "created": created}

    _print(_with_services(data_dir, work), as_json)


@hold.command("lift")
def lift(hold_id: str, reason: Reason, data_dir: DataDir = None, as_json: Json = False) -> None:
    """End a hold."""
    from chatbot.rights.holds import lift_hold

    with _record(_settings(data_dir)) as database:
        row = lift_hold(database, hold_id, getpass.getuser(), reason)
    _print(_hold(row), as_json)


@hold.command("list")
def list_(data_dir: DataDir = None, as_json: Json = False) -> None:
    """All holds, those in force first."""
    from chatbot.rights.holds import list_holds

    with _record(_settings(data_dir)) as database:
        rows = [_hold(row) for row in list_holds(database)]
    if as_json:
        print(json.dumps({"items": rows}, indent=2))
        return
    shown = [
        [
            *(row[name] for name in ("id", "site", "visitor", "reason", "placed_by")),
            "yes" if row["lifted_at"] is None else f"lifted by {row['lifted_by']}",
        ]
        for row in rows
    ]
    print_rows(console(), ["hold", "site", "visitor", "reason", "placed by", "in force"], shown)


# -- inside


def _hold(row: Any) -> dict[str, Any]:
    placed = ["id", "site", "visitor", "reason", "placed_by", "placed_at"]
    names = [*placed, "lifted_by", "lifted_at", "lift_reason"]
    return {name: getattr(row, name) for name in names}


def _settings(data_dir: Path | None) -> Settings:
    """Log lines go to standard error: what is printed may be piped."""
    settings = load_settings(data_dir=data_dir)
    configure_logs(settings, "data")
    return settings


def _with_services(data_dir: Path | None, work: Callable[[Services], Awaitable[T]]) -> T:
    from chatbot.bootstrap import open_services

    async def run() -> T:
        async with open_services(_settings(data_dir)) as services:
            return await work(services)

    return asyncio.run(run())


@contextmanager
def _record(settings: Settings) -> Iterator[Database]:
    from chatbot.bootstrap import open_database

    database = open_database(settings)
    try:
        yield database
    finally:
        database.close()


async def _person(services: Services, site: str, sub: str, visitor: str, conversation: str) -> Any:
    """Raises InputError: not named in exactly one way. NotFound."""
    from chatbot.rights.people import Person, person_of_conversation, person_of_visitor
    from chatbot.server.auth import signer_of

    if sum(map(bool, (sub, visitor, conversation))) != 1 or (sub and not site):
        raise InputError("name the person by --site and --sub, by --visitor, or by --conversation")
    if sub:
        return Person(site, signer_of(services).visitor_id(site, sub))
    if conversation:
        return await person_of_conversation(services.database, services.log, conversation)
    return person_of_visitor(services.database, visitor)


def _confirm(visitor: str) -> None:
    typed = typer.prompt(f"This cannot be undone. Type {visitor} to erase this person", err=True)
    if typed.strip() != visitor:
        raise RequestRefused("that is another id: nothing was erased")


def _write_file(
    database: Database, wanted: Any, form: Format, redact: bool, out: Path, total: int
) -> int:
    """How many conversations were written. The file appears whole or not at all."""
    if str(out) == "-":
        return _fill(database, wanted, form, redact, sys.stdout.write, total)
    draft = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with os.fdopen(os.open(draft, flags, 0o600), "w", encoding="utf-8", newline="") as file:
            done = _fill(database, wanted, form, redact, file.write, total)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(out)
        return done
    except OSError as error:
        raise StorageFull(f"{out} cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def _fill(
    database: Database,
    wanted: Any,
    form: Format,
    redact: bool,
    write: Callable[[str], Any],
    total: int,
) -> int:
    from chatbot.rights.export import batches, header, lines

    done = 0
    write(header(form))
    with _bar("exporting") as advance:
        for names in batches(database, wanted):
            for text in lines(database, names, form, redact):
                write(text)
            done += len(names)
            advance(done, max(done, total))
    return done


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, where a person sees it and a pipe does not."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print(values: dict[str, Any], as_json: bool, quiet: bool = False) -> None:
    if quiet:
        return
    if as_json:
        print(json.dumps(values, indent=2, ensure_ascii=False))
        return
    facts = [(name.replace("_", " "), _shown(name, value)) for name, value in values.items()]
    print_facts(console(), facts)


def _shown(name: str, value: Any) -> str:
    if name.endswith("_at") and isinstance(value, int):
        return datetime.fromtimestamp(value / 1000, UTC).isoformat(timespec="seconds")
    if isinstance(value, list):
        return "\n".join(_shown("", item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(key, item)}" for key, item in value.items())
    return "–" if value is None else str(value)


def _format_of(out: Path) -> Format:
    if out.suffix == ".csv":
        return "csv"
    if out.suffix in (".jsonl", ".ndjson") or str(out) == "-":
        return "jsonl"
    raise InputError(f"{out}: name it .jsonl or .csv, or give --format")


def _date(text: str) -> int | None:
    """A date or time as Unix ms; UTC where it says nothing else."""
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{text!r} is no date: 2026-11-28, or 2026-11-28T12:00") from None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def _number(name: str, text: str) -> int | None:
    if text == "default":
        return None
    least = 1 if name == "log_days" else 0
    if not text.isdecimal() or not least <= int(text) <= 100_000:
        raise InputError(f"--{name.replace('_', '-')} {text}: a number from {least}, or 'default'")
    return int(text)
