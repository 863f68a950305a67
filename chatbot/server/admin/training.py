"""What the next training run would use."""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, cast

from fastapi import APIRouter

from chatbot.errors import TrainingError
from chatbot.record.tables import Site
from chatbot.review_data import excluded_conversations, reviewed_dialogues
from chatbot.server.admin.common import Answer, Reviewer, Stores
from chatbot.services import Services

router = APIRouter(prefix="/training", tags=["training"])
GROUP = "frontdesk.training"  # how finetune offers what this package may not import


class Example(Answer):
    before: str
    after: str


class Redaction(Answer):
    """``counts``: findings by kind, e.g. ``{"EMAIL": 3}``."""

    counts: dict[str, int]
    examples: list[Example]


class Preview(Answer):
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
def preview(_: Reviewer, stores: Stores) -> Preview:
    """Reads and counts everything, so it takes seconds."""
    found = load_preview()(
        {}, reviewed_dialogues(stores.database, prompts(stores)), stores.settings
    )
    active = stores.runs.active()
    if active is not None:
        found |= {"can_start": False, "reason": f"run {active.id} is {active.state}"}
    return Preview(**found, excluded=excluded_conversations(stores.database))


def load_preview() -> Callable[..., dict[str, Any]]:
    """finetune's part.

    Raises:
        TrainingError: the package finetune is not installed here.
    """
    for entry in entry_points(group=GROUP, name="preview"):
        return cast(Callable[..., dict[str, Any]], entry.load())
    raise TrainingError("training is not part of this installation: install the package finetune")


def prompts(stores: Services) -> Callable[[str], str]:
    """The system prompt of a site, as the worker uses it."""
    with stores.database.session() as session:
        own = {site.name: site.system_prompt for site in session.query(Site)}
    return lambda name: own.get(name) or stores.settings.system_prompt
