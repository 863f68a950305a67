"""A run in the terminal: a progress bar, or plain lines where nobody watches; Ctrl-C once."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from finetune import progress as lines

SECONDS_BETWEEN_LINES = 10.0
Line = lines.Progress


@contextmanager
def shown_progress(console: Console) -> Iterator[lines.OnProgress]:
    """Yields what draws each line of progress on ``console``."""
    if not console.is_terminal:
        yield _PlainLines(console)
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console) as bar:
        tasks: dict[str, int] = {}

        def draw(line: Line) -> None:
            name = f"{line.phase} {line.message}" if line.phase == "evaluate" else line.phase
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=line.total_steps or None, detail="")
            bar.update(
                tasks[name],  # type: ignore[arg-type]
                total=line.total_steps or None,
                completed=line.step,
                detail=detail(line),
            )
            if line.phase != "prepare" and "prepare" in tasks:
                bar.update(tasks["prepare"], total=1, completed=1, detail="done")  # type: ignore[arg-type]

        yield draw


def detail(line: Line) -> str:
    """What is beside the bar, e.g. "12/100 · loss 1.93 · 262 tokens/s · 5:02 left"."""
    parts = []
    if line.total_steps:
        parts.append(f"{line.step}/{line.total_steps}")
    if line.loss is not None:
        parts.append(f"loss {line.loss:.3f}")
    if line.tokens_per_s is not None:
        parts.append(f"{line.tokens_per_s:.0f} tokens/s")
    if line.seconds_left is not None:
        parts.append(f"{int(line.seconds_left) // 60}:{int(line.seconds_left) % 60:02d} left")
    if line.message and line.phase != "evaluate":
        parts.append(line.message)
    return " · ".join(parts)


class _PlainLines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._key = ""
        self._at = 0.0

    def __call__(self, line: Line) -> None:
        key = f"{line.phase} {line.message}"
        ends = line.total_steps > 0 and line.step == line.total_steps
        if key == self._key and not ends and time.monotonic() - self._at < SECONDS_BETWEEN_LINES:
            return
        self._key, self._at = key, time.monotonic()
        name = f"evaluate {line.message}" if line.phase == "evaluate" else line.phase
        self._console.print(f"{name}: {detail(line)}", markup=False, highlight=False)


@contextmanager
def stop_on_interrupt(console: Console) -> Iterator[threading.Event]:
    """Yields the event that the first Ctrl-C (or SIGTERM) sets; the second one ends at once."""
    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        console.print("Stopping after this step; Ctrl-C again ends at once.")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
