"""Faults under load, by scenario: real servers, workers, archiver and stores on loopback are
killed, stopped, cut off, emptied and filled up, while visitors chat. In the end every visitor's
view is compared with the log and the record.

``python -m bench.soak`` runs everything (about an hour), ``--quick`` the same in small (minutes),
``--only NAME`` one scenario, ``--list`` names them. It stops by itself and touches loopback only.
The last line is one JSON object; the exit code is 1 when something was lost, doubled or torn.

* *lost*: acknowledged to a visitor, and not in the log;
* *duplicated*: more than once in the log, or shown more than once;
* *torn*, *repeated*: a reply that was shown, or written, otherwise than as the one text that its
  question calls for; one that ended twice;
* *orphaned*, *unanswered*: a question that nobody answers;
* *gaps*, *unrecorded*: events that a visitor was not shown, or that the record lacks.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from bench.faults.check import Findings
from bench.faults.process import Nursery
from bench.faults.scenarios.common import Outcome, Setting, StoreKind
from bench.faults.scenarios.registry import SCENARIOS
from bench.faults.stores import redis_binary

COUNTS = ("lost", "duplicated", "torn", "repeated", "orphaned", "gaps", "talked_over", "unrecorded")
Run = tuple[str, StoreKind]


def planned(only: list[str], stores: list[str], quick: bool) -> list[Run]:
    """What to run. In a quick soak each scenario runs on one store, in turn."""
    runs: list[Run] = []
    for place, (name, scenario) in enumerate(SCENARIOS.items()):
        if only and name not in only:
            continue
        on = [store for store in scenario.on if not stores or store in stores]
        runs += [(name, store) for store in ([on[place % len(on)]] if quick and on else on)]
    return runs


async def soak(
    runs: list[Run], quick: bool, console: Console
) -> tuple[dict[str, Outcome], list[str]]:
    """Run the scenarios one after the other; what they found, and which of them broke down."""
    outcomes: dict[str, Outcome] = {}
    broken: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with nursery() as made, Progress(*columns, console=console) as bars:
        for name, store in runs:
            scenario = SCENARIOS[name]
            bar = bars.add_task(f"{name} on {store}", total=1.0)
            with tempfile.TemporaryDirectory(prefix="frontdesk-soak-") as folder:
                setting = Setting(
                    Path(folder),
                    made,
                    store,
                    scenario.quick if quick else scenario.times,
                    progress=lambda share, bar=bar: bars.update(bar, completed=share),  # type: ignore[misc]
                )
                try:
                    outcome = await scenario.run(setting)
                except Exception:  # what the others found is not lost with it
                    bars.console.print_exception()
                    broken.append(f"{name}/{store}")
                    continue
            outcomes[f"{name}/{store}"] = outcome
            bars.update(bar, completed=1.0)
            colour = "green" if outcome.clean else "red"
            bars.console.print(f"[{colour}]{name} on {store}: {outcome.as_dict()}[/]")
    return outcomes, broken


@contextmanager
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    try:
        yield made
    finally:
        made.close()


def total(outcomes: dict[str, Outcome]) -> dict[str, Any]:
    """All scenarios together. Longest gaps are not added up."""
    found = Findings()
    for outcome in outcomes.values():
        found.add(outcome.found)
    return {
        "faults": sum(outcome.faults.total() for outcome in outcomes.values()),
        **asdict(found),
        "unanswered": sum(outcome.unanswered for outcome in outcomes.values()),
        "seconds": round(sum(outcome.seconds for outcome in outcomes.values())),
    }


def as_table(outcomes: dict[str, Outcome]) -> Table:
    """What a person wants to see first, in 80 columns; the JSON has all of it."""
    columns = ("faults", "acked", "lost", "twice", "torn", "other", "gap s")
    table = Table(
        Column("scenario", no_wrap=True),
        *(Column(name, justify="right") for name in columns),
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for name, outcome in outcomes.items():
        row = outcome.as_dict()
        other = sum(row[count] for count in (*COUNTS, "unanswered")) - sum(
            row[count] for count in ("lost", "duplicated", "torn", "repeated")
        )
        counted = (row["faults"], row["acknowledged"], row["lost"], row["duplicated"])
        cells = (*counted, row["torn"] + row["repeated"], other, row["longest_gap_s"])
        table.add_row(name, *(str(cell) for cell in cells))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="everything once, in minutes")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--store", action="append", default=[], metavar="KIND")
    parser.add_argument("--list", action="store_true", help="name the scenarios and their stores")
    options = parser.parse_args()
    console = Console(stderr=True)
    if options.list:
        for name, scenario in SCENARIOS.items():
            console.print(name, "on", ", ".join(scenario.on))
        return
    unknown = set(options.only) - set(SCENARIOS)
    if unknown:
        sys.exit(f"no such scenario: {', '.join(sorted(unknown))}; --list names them")
    runs = planned(options.only, options.store, options.quick)
    if redis_binary() is None and any(store != "valkey" for _, store in runs):
        sys.exit("a soak needs a redis-server: install Debian's, or choose --store valkey")
    outcomes, broken = asyncio.run(soak(runs, options.quick, console))
    console.print(as_table(outcomes))
    result = {
        "quick": options.quick,
        "scenarios": {name: outcome.as_dict() for name, outcome in outcomes.items()},
        "total": total(outcomes),
        "broken": broken,
        "clean": not broken and all(outcome.clean for outcome in outcomes.values()),
    }
    print(json.dumps(result))
    if not result["clean"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
