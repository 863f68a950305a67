"""What the next training run would use."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import entry_points
from multiprocessing import get_context
from typing import Any, cast

from fastapi import APIRouter, Request

from chatbot.errors import TrainingError
from chatbot.record.database import Database
from chatbot.review_data import excluded_conversations, reviewed_dialogues, site_prompts
from chatbot.server.admin.common import Answer, Reviewer, Stores
from chatbot.server.admin.counting import SharedCount, data_mark
from chatbot.settings import Settings

router = APIRouter(prefix="/training", tags=["training"])
GROUP = "frontdesk.training"  # how finetune offers what this package may not import
NICE = 10  # chats come first


class Example(Answer):
    before: str
    after: str


class Redaction(Answer):
    """``counts``: findings by kind, e.g. ``{"EMAIL": 3}``."""

    counts: dict[str, int]
    examples: list[Example]


class Preview(Answer):
    """``excluded``: reviewed conversations that are kept out. ``reason``: why no run can start."""

    dialogues: int
    from_file: int
    from_reviews: int
    corrections: int
    excluded: int
    tokens: int
    redaction: Redaction
    fingerprint: str
    can_start: bool
    reason: str | None


@router.get("/preview")
async def preview(request: Request, _: Reviewer, stores: Stores) -> Preview:
    """Reads and counts everything that a run would use, so it takes seconds, under load minutes.
    Those who ask at once get one count; it is kept until files or reviews change."""
    settings, database = stores.settings, stores.database
    mark = await asyncio.to_thread(data_mark, settings, database)
    shared: SharedCount = request.app.state.training_count
    found = dict(await shared.get(mark, lambda: _in_child(settings, database.url)))
    active = await asyncio.to_thread(stores.runs.active)
    if active is not None:
        found |= {"can_start": False, "reason": f"run {active.id} is {active.state}"}
    return Preview(**found)


async def _in_child(settings: Settings, database_url: str) -> dict[str, Any]:
    """Half a minute of counting would make this process's sockets stutter: a process of its own
    does it.

    Raises:
        TrainingError: it was killed. Else as :func:`compute_preview`.
    """
    executor = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    try:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(executor, compute_preview, settings, database_url)
    except BrokenProcessPool as error:
        raise TrainingError(
            "counting the training data was cut off, perhaps for want of memory: try again"
        ) from error
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def compute_preview(settings: Settings, database_url: str) -> dict[str, Any]:
    """The fields of :class:`Preview`, in a process of its own.

    Raises:
        StoreUnavailable
        TrainingError: the package finetune is not installed.
    """
    os.nice(NICE)
    database = Database(database_url)
    try:
        prompts = site_prompts(database, settings.system_prompt)
        found = load_preview()({}, reviewed_dialogues(database, prompts), settings)
        return {**found, "excluded": excluded_conversations(database)}
    finally:
        database.close()


def load_preview() -> Callable[..., dict[str, Any]]:
    """finetune's part. Raises TrainingError: it is not installed here."""
    for entry in entry_points(group=GROUP, name="preview"):
        return cast(Callable[..., dict[str, Any]], entry.load())
    raise TrainingError("training is not part of this installation: install the package finetune")
