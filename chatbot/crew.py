"""Tasks that live and die together, ended for certain.

``asyncio.TaskGroup`` cancels once. Before Python 3.12 ``asyncio.wait_for`` could lose a
cancellation that came in the moment its own work was done (CPython issue 86296), and redis-py
calls it for every command: a task group then waits for ever. So tasks here are cancelled until
they have ended.
"""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

AGAIN = 0.1  # seconds between two cancellations of one task


class Crew:
    """``spawn`` tasks, then ``run``. One may end by itself; the first that fails ends all."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def spawn(self, job: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task that ends with the crew."""
        task = asyncio.create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)
        return task

    async def run(self) -> None:
        """Wait for the first failure, end all tasks, and raise it."""
        try:
            await self._failed
        finally:
            await end_tasks(self._tasks)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        problem = task.exception()
        if problem is not None and not self._failed.done():
            self._failed.set_exception(problem)


async def run_together(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run jobs until the first fails; end the others, and raise its exception."""
    crew = Crew()
    for job in jobs:
        crew.spawn(job)
    await crew.run()


async def all_or_none(*jobs: Coroutine[Any, Any, None]) -> None:
    """Run jobs until all have ended, or until the first fails: then end the others, and raise its
    exception."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        await end_tasks(tasks)


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until each has ended. Being cancelled meanwhile is told afterwards."""
    left = {task for task in tasks if not task.done()}
    told: asyncio.CancelledError | None = None
    while left:
        for task in left:
            task.cancel()
        try:
            await asyncio.wait(left, timeout=AGAIN)
        except asyncio.CancelledError as cancelled:
            told = cancelled
        left = {task for task in left if not task.done()}
    if told is not None:
        raise told
