"""The commands of this package: train, evaluate, preferences, transcripts."""

import json
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from chatbot.settings import Settings, load_settings
from chatbot.terminal import console as terminal
from chatbot.terminal import make_table
from finetune.transcripts_command import (
    ColumnOptions,
    Format,
    RoleOptions,
    parse_columns,
    transcripts,
)

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where everything is kept.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Files = Annotated[list[Path] | None, typer.Option(help="Transcript file; may be repeated.")]


def add_commands(app: typer.Typer) -> None:
    """Add the commands to ``frontdesk``."""
    app.command()(train)
    app.command()(evaluate)
    app.command()(preferences)
    app.add_typer(transcripts, name="transcripts")


def train(
    data: Files = None,
    eval_data: Annotated[
        list[Path] | None,
        typer.Option(help="Held-out transcripts; without them a tenth of the data is held out."),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="smollm2-135m, a Hugging Face id or a directory.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take so many dialogues only.")] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with the run of this id.")] = None,
    data_dir: DataDir = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="End after so many steps.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    rank: Annotated[int | None, typer.Option(help="LoRA rank.")] = None,
    alpha: Annotated[float | None, typer.Option(help="LoRA alpha; twice the rank.")] = None,
    dropout: Annotated[float | None, typer.Option(help="LoRA dropout.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Dialogues per step.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest piece of a dialogue.")] = None,
    checkpoint_steps: Annotated[int | None, typer.Option(help="Steps between two.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of order and first weights.")] = None,
    eval_limit: Annotated[int | None, typer.Option(help="Held-out dialogues judged.")] = None,
    eval_turns: Annotated[int | None, typer.Option(help="Replies written to judge.")] = None,
    reviews: Annotated[
        bool, typer.Option("--reviews", help="Train on reviewed conversations too.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda ...")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; 0 is all.")] = None,
    format_name: Format = None,
    column: ColumnOptions = None,
    role: RoleOptions = None,
    as_json: Json = False,
) -> None:
    """Tune a version on transcripts, judge it, and register it as a candidate."""
    from chatbot.errors import TrainingError

    settings = load_settings(data_dir=data_dir)
    choices = {
        "epochs": epochs, "max_steps": max_steps, "learning_rate": learning_rate, "rank": rank,
        "alpha": alpha if alpha is not None or rank is None else 2.0 * rank, "dropout": dropout,
        "batch_size": batch_size, "max_tokens": max_tokens, "checkpoint_steps": checkpoint_steps,
        "seed": seed, "eval_limit": eval_limit, "eval_turns": eval_turns, "limit": limit,
        "base": base, "format_name": format_name, "columns": parse_columns(column, role),
        "data": tuple(path.absolute() for path in data or ()),
        "eval_data": tuple(path.absolute() for path in eval_data or ()),
    }  # fmt: skip
    given = {name: value for name, value in choices.items() if value not in (None, ())}
    machine = {"device": device, "dtype": dtype, "threads": threads}
    if resume is not None and (given or reviews):
        raise TrainingError(
            f"--resume goes on with the choices of run {resume}; leave out "
            f"{', '.join(['--' + name.replace('_', '-') for name in given] or ['--reviews'])}"
        )
    config = _config(settings, resume, given, machine)
    _train(config, settings, reviews, as_json)


def _config(
    settings: Settings, resume: str | None, given: dict[str, Any], machine: dict[str, Any]
) -> Any:
    from chatbot.errors import TrainingError
    from finetune.config import TrainConfig, load_config

    chosen = {name: value for name, value in machine.items() if value is not None}
    if resume is not None:
        return replace(load_config(settings.data_dir, resume), **chosen)
    defaults: dict[str, Any] = {
        "base": settings.base_model,
        "device": settings.device,
        "dtype": settings.dtype,
        "threads": settings.trainer_threads,
        "data": (Path(settings.train_data).absolute(),) if settings.train_data else (),
    }
    if settings.train_eval_data:
        defaults["eval_data"] = (Path(settings.train_eval_data).absolute(),)
    merged = {**defaults, **given, **chosen}
    if not merged["data"]:
        raise TrainingError("nothing to train on: give --data FILE or set FRONTDESK_TRAIN_DATA")
    return TrainConfig(run_id=f"run-{uuid.uuid4().hex[:12]}", data_dir=settings.data_dir, **merged)


def _train(config: Any, settings: Settings, reviews: bool, as_json: bool) -> None:
    from chatbot.bootstrap import open_database, open_versions
    from chatbot.errors import RunInterrupted
    from finetune.pipeline import live_subject, run_pipeline
    from finetune.progress import Progress, ProgressLog
    from finetune.terminal import shown_progress, stop_on_interrupt

    console = terminal(stderr=as_json)
    console.print(f"run [bold]{config.run_id}[/] in {config.directory}", soft_wrap=True)
    with _kept_once_begun(config.directory), closing(open_database(settings)) as database:
        log = ProgressLog(config.directory / "progress.jsonl")
        versions = open_versions(settings, database)
        live = live_subject(versions, config.base)
        reviewed: Iterable[dict[str, Any]] = _reviewed(database, settings) if reviews else ()
        with shown_progress(console) as draw, stop_on_interrupt(console) as stop:

            def report(progress: Progress) -> None:
                log(progress)
                draw(progress)

            try:
                outcome = run_pipeline(config, settings, live, report, stop.is_set, reviewed)
            except RunInterrupted:
                console.print(
                    f"Stopped; everything is kept. Go on with: frontdesk train --resume "
                    f"{config.run_id} --data-dir {settings.data_dir}",
                    soft_wrap=True,
                )
                raise typer.Exit(130) from None
        registered = config.base == settings.base_model
        if registered:
            versions.register(outcome.directory)
    _finish(outcome, registered, config, settings, console, as_json)


@contextmanager
def _kept_once_begun(folder: Path) -> Iterator[None]:
    """Take away the folder of a new run that fails before its first step: there is nothing in it
    to go on with."""
    new = not folder.exists()
    try:
        yield
    except typer.Exit:  # stopped on request: it says how to go on
        raise
    except Exception:
        if new and not _stepped(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _stepped(folder: Path) -> bool:
    try:
        lines = (folder / "progress.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return any(json.loads(line)["phase"] == "train" for line in lines)


def _reviewed(database: Any, settings: Settings) -> Iterable[dict[str, Any]]:
    from chatbot.review_data import reviewed_dialogues, site_prompts

    return reviewed_dialogues(database, site_prompts(database, settings.system_prompt))


def _finish(
    outcome: Any, registered: bool, config: Any, settings: Settings, console: Console, as_json: bool
) -> None:
    if as_json:
        result = {
            "run_id": config.run_id,
            "version_id": outcome.version_id,
            "directory": str(outcome.directory),
            "registered": registered,
            "models": outcome.report["models"],
            "decision": outcome.report["decision"],
            "training": {k: v for k, v in outcome.report["training"].items() if k != "loss"},
        }
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    console.print(summary(outcome.report))
    console.print(f"report: {outcome.directory / 'report.html'}", soft_wrap=True)
    if registered:
        console.print(
            f"[bold]{outcome.version_id}[/] is a candidate. Make it live with: "
            f"frontdesk models promote {outcome.version_id} --reason …",
            soft_wrap=True,
        )
    else:
        console.print(
            f"{outcome.version_id} is not registered: it was made for {config.base}, and this "
            f"installation runs {settings.base_model}. Set FRONTDESK_BASE_MODEL to use it.",
            soft_wrap=True,
        )


def summary(report: dict[str, Any]) -> Table:
    """The report's numbers as a table, with the decision below it."""
    from finetune.report import MODELS, ROWS

    shown = [name for name in MODELS if report["models"].get(name)]
    decision = report["decision"]
    verdict = "may be promoted" if decision["passed"] else "; ".join(decision["reasons"])
    table = make_table(
        "",
        *(f"{name}\n{report['models'][name]['version']}" for name in shown),
        caption=f"decision: {verdict}",
    )
    for key, (label, pattern, _) in ROWS.items():
        values = [report["models"][name].get(key) for name in shown]
        table.add_row(label, *("–" if v is None else pattern.format(v) for v in values))
    return table


def evaluate(
    data: Annotated[list[Path], typer.Option(help="Held-out transcripts; may be repeated.")],
    version: Annotated[
        str | None, typer.Option(help="Version to judge; the live one if not given.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A PEFT directory to judge instead of a version.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of report.json and report.html.")] = None,
    limit: Annotated[int | None, typer.Option(help="Judge on so many dialogues only.")] = None,
    limit_turns: Annotated[int, typer.Option(help="Replies written to judge.")] = 400,
    data_dir: DataDir = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda ...")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; 0 is all.")] = None,
    format_name: Format = None,
    column: ColumnOptions = None,
    role: RoleOptions = None,
    as_json: Json = False,
) -> None:
    """Judge a version, the live one and the base model on held-out transcripts.

    Perplexity is over every agent turn; replies are written for a sample of turns.
    """
    from finetune.config import TrainConfig
    from finetune.judge_command import judge_files

    settings = load_settings(data_dir=data_dir)
    stamp = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    config = TrainConfig(
        run_id=f"evaluation-{stamp}",
        data_dir=settings.data_dir,
        base=settings.base_model,
        eval_data=tuple(data),
        eval_limit=limit,
        eval_turns=limit_turns,
        format_name=format_name,
        columns=parse_columns(column, role),
        device=device or settings.device,
        dtype=dtype or settings.dtype,
        threads=settings.trainer_threads if threads is None else threads,
    )
    folder = out or settings.data_dir / "reports" / stamp
    console = terminal(stderr=as_json)
    report = judge_files(config, settings, version, adapter, folder, console)
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return
    console.print(summary(report))
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


def preferences(
    out: Annotated[Path, typer.Argument(help="JSON lines file to write.")],
    data_dir: DataDir = None,
) -> None:
    """Write what agents preferred to drafts, as pairs for preference training (trl's format)."""
    from chatbot.bootstrap import open_database
    from chatbot.review_data import site_prompts
    from finetune.preferences import preference_pairs
    from finetune.storage import require_target, write_errors_named, write_whole

    settings = load_settings(data_dir=data_dir)
    require_target(out)
    with closing(open_database(settings)) as database:
        prompts = site_prompts(database, settings.system_prompt)
        lines = [
            json.dumps(pair, ensure_ascii=False) for pair in preference_pairs(database, prompts)
        ]
    with write_errors_named(out):
        write_whole(out, "".join(line + "\n" for line in lines).encode())
    terminal().print(f"{len(lines)} pairs in {out}", soft_wrap=True)
