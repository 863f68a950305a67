"""The ``frontdesk`` command. Thin: parses options, builds settings, calls the rooms."""

import asyncio
import json
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.text import Text

from chatbot import __version__
from chatbot.errors import FrontdeskError
from chatbot.logs import configure_logs
from chatbot.settings import PREFIX, Settings, load_settings
from chatbot.terminal import console as terminal
from chatbot.terminal import print_rows
from chatbot.tracing import configure_tracing

SHOP_PROMPT = (
    "You are the customer service assistant of Juniper & Pine, an online plant shop. "
    "Be friendly, short and precise."
)

app = typer.Typer(
    name="frontdesk",
    help="A customer-service chatbot that you own: tune it, run it, keep improving it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where everything is kept.")]
Port = Annotated[int | None, typer.Option("--port", help="Port of the server.")]


def _settings(process: str, **overrides: object) -> Settings:
    settings = load_settings(**overrides)
    configure_logs(settings, process)
    configure_tracing(settings, process)
    return settings


@app.command()
def up(
    data_dir: DataDir = None,
    port: Port = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    console_port: Annotated[int | None, typer.Option(help="Port of the console.")] = None,
    console: Annotated[
        bool, typer.Option("--console/--no-console", help="Run the console.")
    ] = True,
) -> None:
    """Start everything on this machine: store, server, worker, trainer and console."""
    from chatbot.up import Plan
    from chatbot.up import up as run

    settings = _settings("up", data_dir=data_dir, port=port, host=host, console_port=console_port)
    asyncio.run(run(Plan(settings, console=console), terminal()))


@app.command()
def demo(
    data_dir: DataDir = None,
    port: Port = None,
    console_port: Annotated[int | None, typer.Option(help="Port of the console.")] = None,
    shop: Annotated[Path, typer.Option(help="Folder of the shop.")] = Path("examples/shop"),
) -> None:
    """Start everything with a fictional plant shop, and train its first version."""
    from chatbot.demo import demo as run
    from chatbot.demo import demo_plan

    settings = _settings("demo", data_dir=data_dir, port=port, console_port=console_port)
    asyncio.run(run(demo_plan(settings, shop), SHOP_PROMPT, terminal()))


@app.command()
def server(
    data_dir: DataDir = None,
    port: Port = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    demo_page: Annotated[Path | None, typer.Option(help="A page to serve under /demo.")] = None,
) -> None:
    """Run the server: the visitors' and agents' sockets, the APIs and the pages."""
    from chatbot.processes import run_server

    settings = _settings("server", data_dir=data_dir, port=port, host=host)
    asyncio.run(run_server(settings, demo_page))


@app.command()
def worker(data_dir: DataDir = None) -> None:
    """Run a worker: it writes the replies, and copies the log into the record."""
    from chatbot.processes import run_worker

    asyncio.run(run_worker(_settings("worker", data_dir=data_dir)))


@app.command()
def archiver(data_dir: DataDir = None) -> None:
    """Run an archiver alone: it copies the log into the record, as every worker does too."""
    from chatbot.processes import run_archiver

    asyncio.run(run_archiver(_settings("archiver", data_dir=data_dir)))


@app.command()
def trainer(data_dir: DataDir = None) -> None:
    """Run the trainer: it works off the training runs that the console starts."""
    from chatbot.processes import run_trainer

    run_trainer(_settings("trainer", data_dir=data_dir))


@app.command(hidden=True)
def store(data_dir: DataDir = None) -> None:
    """Run the embedded Valkey of the data directory."""
    from chatbot.processes import run_store

    run_store(_settings("store", data_dir=data_dir))


@app.command()
def config(
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print every setting, its value and where it came from. Secrets are masked."""
    rows = setting_rows(load_settings(data_dir=data_dir), {"data_dir"} if data_dir else set())
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print_rows(
        terminal(),
        ["setting", "value", "from", "meaning"],
        [[row["variable"], row["value"], row["source"], row["help"]] for row in rows],
    )


def setting_rows(settings: Settings, given: set[str]) -> list[dict[str, str]]:
    """One row a setting: variable, value (secrets masked), source, help."""
    rows = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, SecretStr):
            value = "********" if value.get_secret_value() else ""
        elif name in ("redis_url", "database_url", "remote_url"):
            value = _masked_url(value)
        source = (
            "option"
            if name in given
            else "environment"
            if name in settings.model_fields_set
            else "default"
        )
        rows.append(
            {
                "name": name,
                "variable": PREFIX + name.upper(),
                "value": str(value),
                "source": source,
                "help": field.description or "",
            }
        )
    return rows


def _masked_url(url: str) -> str:
    """The URL with its password as stars."""
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    if not at or ":" not in credentials:
        return url
    return f"{scheme}{separator}{credentials.partition(':')[0]}:********@{host}"


def _version(value: bool) -> None:
    if value:
        print(f"frontdesk {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def build() -> typer.Typer:
    """The whole command: ours, and what other packages add (entry points, see pyproject.toml)."""
    from chatbot import chat_command, data_command, keys_command, models_command, staff_command

    for module in (chat_command, data_command, models_command, staff_command, keys_command):
        module.add_commands(app)
    for entry in entry_points(group="frontdesk.commands"):
        entry.load()(app)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. An error of ours is one line on standard error and exit code 1."""
    try:
        build()(args=list(arguments) if arguments is not None else None)
    except FrontdeskError as error:
        line = Text.assemble(("error: ", "red"), str(error))
        Console(stderr=True, highlight=False, soft_wrap=True).print(line)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
