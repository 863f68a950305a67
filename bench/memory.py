"""How much memory a process and all that it started hold."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

WATCH_SECONDS = 0.5


class Memory:
    """The peak of what a process and its descendants hold, in MB (resident; shared pages count
    once for each process)."""

    def __init__(self) -> None:
        self.peak = 0.0

    @asynccontextmanager
    async def watch(self, pid: int | None) -> AsyncIterator[None]:
        """``pid`` None: nothing is watched."""
        task = asyncio.create_task(self._watch(pid)) if pid is not None else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _watch(self, pid: int) -> None:
        while True:
            self.peak = max(self.peak, await asyncio.to_thread(tree_megabytes, pid))
            await asyncio.sleep(WATCH_SECONDS)


def tree_megabytes(root: int) -> float:
    """Resident memory of a process and all its descendants now."""
    command = ["ps", "-axo", "pid=,ppid=,rss="]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [tuple(map(int, line.split())) for line in listing.splitlines()]
    family, grown = {root}, True
    while grown:
        more = {pid for pid, parent, _ in rows if parent in family} - family
        family |= more
        grown = bool(more)
    return sum(kilobytes for pid, _, kilobytes in rows if pid in family) / 1024
