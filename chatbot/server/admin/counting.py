"""One count of the training data at a time, whoever asks, and none while the data is the same."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import select

from chatbot.record.database import Database
from chatbot.record.tables import Conversation, Review, Site
from chatbot.settings import Settings

Compute = Callable[[], Awaitable[dict[str, Any]]]


class SharedCount:
    """``app.state.training_count``. Counting takes a processor for half a minute, more under load,
    so who asks while it goes on waits for that count, and who asks later gets it again.

    A count belongs to a task of its own: an asker who goes away neither ends it, nor leaves it
    running beside the next one.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[dict[str, Any]] | None = None
        self._mark = ""

    async def get(self, mark: str, compute: Compute) -> dict[str, Any]:
        """What ``compute`` gives; ``mark`` says which data it is of (:func:`data_mark`).

        Raises:
            as ``compute``, for everybody who waited for it. The next asker begins again.
        """
        while (task := self._task) is not None and not task.done() and self._mark != mark:
            await asyncio.wait([task])  # of older data: one at a time all the same
        if task is None or self._mark != mark or _failed(task):
            task = self._task = asyncio.create_task(_run(compute))
            self._mark = mark
        return await asyncio.shield(task)


async def _run(compute: Compute) -> dict[str, Any]:
    return await compute()


def _failed(task: asyncio.Task[dict[str, Any]]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def data_mark(settings: Settings, database: Database) -> str:
    """Changes whenever the files, the reviews or what is learned with them may have changed. Cheap:
    it reads neither transcripts nor conversations.

    Raises:
        StoreUnavailable
    """
    digest = hashlib.sha256(repr((settings.base_model, settings.system_prompt)).encode())
    for name in (settings.train_data, settings.train_eval_data):
        for path, size, changed in _files(name):
            digest.update(repr((path, size, changed)).encode())
    # a conversation goes on after it was reviewed, and may be excluded
    reviews = (
        select(
            Review.conversation_id,
            Review.offset,
            Review.updated_at,
            Conversation.updated_at,
            Conversation.recorded_offset,
            Conversation.excluded,
        )
        .join(Conversation, Conversation.id == Review.conversation_id)
        .order_by(Review.conversation_id, Review.offset)
    )
    sites = select(Site.name, Site.system_prompt).order_by(Site.name)
    with database.session() as session:
        for row in (*session.execute(reviews), *session.execute(sites)):
            digest.update(repr(tuple(row)).encode())
    return digest.hexdigest()


def _files(name: str) -> Iterator[tuple[str, int, int]]:
    """(path, bytes, time of change in ns) of the file, or of all in the folder."""
    if not name:
        return
    top = Path(name)
    for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
        try:
            stat = path.stat()
        except OSError:
            yield str(path), -1, 0  # that it is not there is what the count will say
            continue
        yield str(path), stat.st_size, stat.st_mtime_ns
