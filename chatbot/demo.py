"""``frontdesk demo``: a fictional shop whose bot answers at once with the base model and then,
when its first training run passes its evaluation, with a version tuned on its transcripts."""

import asyncio
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from chatbot.bootstrap import open_database, open_versions, resolve_queue_url
from chatbot.errors import SettingsError
from chatbot.record.database import Database
from chatbot.record.tables import Site
from chatbot.settings import Settings, load_settings
from chatbot.training_runs import Run, TrainingRuns
from chatbot.up import Plan, print_addresses, running
from chatbot.versions import VersionInfo, base_version_id

RUN_SETTINGS = {"epochs": 2, "auto_promote": True}
POLL_SECONDS = 1.0
FIRST_RUN = "demo-first-run"


def demo_plan(settings: Settings, shop: Path) -> Plan:
    """The plan for the shop in ``shop`` (a folder with transcripts and a page).

    Raises:
        SettingsError: the folder lacks a file.
    """
    for name in ("transcripts.jsonl", "heldout.jsonl", "index.html"):
        if not (shop / name).is_file():
            raise SettingsError(
                f"{shop / name} is missing: run the demo in a clone of the repository, or give "
                "--shop the folder that holds it"
            )
    values = settings.model_dump()
    values["train_data"] = settings.train_data or str((shop / "transcripts.jsonl").absolute())
    values["train_eval_data"] = settings.train_eval_data or str((shop / "heldout.jsonl").absolute())
    return Plan(load_settings(**values), demo_page=shop / "index.html")


async def demo(plan: Plan, system_prompt: str, out: Console) -> None:
    """Start everything, begin the first training run if none was ever begun, show its progress,
    and go on until Ctrl-C."""
    async with running(plan, out) as stop:
        if stop.is_set():
            return
        print_addresses(plan, out)
        database = await asyncio.to_thread(open_database, plan.settings)
        try:
            runs = TrainingRuns(database, resolve_queue_url(plan.settings))
            versions = open_versions(plan.settings, database)
            run = await asyncio.to_thread(_first_run, database, runs, system_prompt)
            if run is not None:
                out.print(what_goes_on(run, await asyncio.to_thread(versions.live)))
                await _follow(runs, run.id, stop, out)
            live = await asyncio.to_thread(versions.live)
            out.print(
                f"Live version: [bold]{live.id}[/]. Ctrl-C stops everything; nothing is lost."
            )
            await stop.wait()
        finally:
            database.close()


def what_goes_on(run: Run, live: VersionInfo) -> str:
    """Who answers now, and what the run under way will change. It need not be the first run: a
    later start finds those that were started in the console, and a tuned version live."""
    untuned = live.id == base_version_id(live.base_model)
    answers = "the base model" if untuned else f"version {live.id}"
    first = untuned and run.request_id == FIRST_RUN
    tuned = (
        "a first version is tuned on the shop's transcripts"
        if first
        else f"training run {run.id} goes on"
    )
    outcome = (
        "when its report passes, the open chat goes on with it"
        if run.settings.get("auto_promote")
        else "its version waits in the console for somebody to promote it"
    )
    return f"The chat answers with {answers} now. Meanwhile {tuned}; {outcome}."


def _first_run(database: Database, runs: TrainingRuns, system_prompt: str) -> Run | None:
    with database.session() as session:
        site = session.get(Site, "demo")
        if site is not None and not site.system_prompt:
            site.system_prompt = system_prompt
            site.title = "Juniper & Pine"
            site.welcome = "Hello! How can we help you and your plants today?"
    active = runs.active()
    if active is not None:
        return active
    if runs.list():
        return None
    return runs.create(request_id=FIRST_RUN, actor="demo", settings=RUN_SETTINGS)[0]


async def _follow(runs: TrainingRuns, run_id: str, stop: asyncio.Event, out: Console) -> None:
    """A progress bar of the run until it or the demo ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"))
    with Progress(*columns, console=out, transient=False) as bar:
        task = bar.add_task("queued", total=None, detail="")
        while not stop.is_set():
            run = await asyncio.to_thread(runs.get, run_id)
            bar.update(
                task,
                description=run.phase or run.state,
                total=run.total_steps or None,
                completed=run.step,
                detail=_detail(run),
            )
            if run.ended_at is not None:
                break
            try:
                await asyncio.wait_for(stop.wait(), POLL_SECONDS)
            except TimeoutError:
                continue
    if run.state == "completed":
        out.print(f"Training finished: version {run.version_id}.")
    elif run.error:
        out.print(f"[red]The training run ended as {run.state}:[/] {run.error}")


def _detail(run: Run) -> str:
    parts = []
    if run.total_steps:
        parts.append(f"step {run.step}/{run.total_steps}")
    if run.loss is not None:
        parts.append(f"loss {run.loss:.2f}")
    if run.tokens_per_s:
        parts.append(f"{run.tokens_per_s:.0f} tokens/s")
    if run.seconds_left is not None:
        parts.append(f"{run.seconds_left / 60:.0f} min left")
    return " · ".join(parts)
