"""``frontdesk models``: list, show, promote and roll back versions, without a running server."""

import getpass
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from chatbot.settings import load_settings
from chatbot.terminal import console, print_rows
from chatbot.versions import VersionInfo, Versions

models = typer.Typer(help="The registry of model versions.", no_args_is_help=True)
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where everything is kept.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; it is recorded.")]


def add_commands(app: typer.Typer) -> None:
    """Add ``models`` to the command."""
    app.add_typer(models, name="models")


@contextmanager
def _registry(data_dir: Path | None) -> Iterator[Versions]:
    from chatbot.bootstrap import open_database, open_versions

    settings = load_settings(data_dir=data_dir)
    database = open_database(settings)
    try:
        yield open_versions(settings, database)
    finally:
        database.close()


@models.command("list")
def list_versions(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Every version, newest first."""
    with _registry(data_dir) as registry:
        versions = registry.list()
    if as_json:
        print(json.dumps([asdict(version) for version in versions], indent=2))
        return
    names = ["version", "state", "base", "perplexity", "exact match", "stop rate", "made"]
    rows = []
    for version in versions:
        metrics = version.manifest.get("metrics") or {}
        numbers = [_number(metrics.get(key)) for key in ("perplexity", "exact_match", "stop_rate")]
        made = datetime.fromtimestamp(version.created_at / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        rows.append([version.id, version.state, version.base_model, *numbers, made])
    print_rows(console(), names, rows)


@models.command()
def show(version: str, data_dir: DataDir = None) -> None:
    """One version with its manifest, as JSON."""
    with _registry(data_dir) as registry:
        print(json.dumps(asdict(registry.get(version)), indent=2))


@models.command()
def promote(
    version: str,
    reason: Reason,
    data_dir: DataDir = None,
    override: Annotated[bool, typer.Option(help="Promote although the rule refuses.")] = False,
) -> None:
    """Make a version live. Running workers take it from the next reply on."""
    with _registry(data_dir) as registry:
        _say(registry.promote(version, getpass.getuser(), reason, override=override))


@models.command()
def rollback(reason: Reason, data_dir: DataDir = None) -> None:
    """Make the version live that was live before."""
    with _registry(data_dir) as registry:
        _say(registry.rollback(getpass.getuser(), reason))


def _say(version: VersionInfo) -> None:
    console().print(f"[bold]{version.id}[/] is live.", soft_wrap=True)


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else "–"
