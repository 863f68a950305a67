"""What the engine may draft from: which texts it is taught, and under which scope.

Drafts never change a reply, only how fast it comes. So that its speed tells nobody what others
said, only texts are taught that nobody could plant to compare with: what staff approved or wrote
(reviews, corrections, agents' own words), for the site alone where it was said, and what several
dialogues of a version's training data have in common. What the bot wrote and visitors said is
drafted from in its own conversation alone.
"""

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path

import structlog

from chatbot.conversation.events import Event
from chatbot.engine.interface import Engine
from chatbot.manifest import REPLIES
from chatbot.record.database import Database
from chatbot.review_data import approved_replies

log = structlog.get_logger()

APPROVED_CONVERSATIONS = 300  # the latest ones are taught
APPROVED_SECONDS = 600.0  # between two looks at the record


def site_scope(site: str) -> str:
    return f"site {site}"


def version_scope(version: str) -> str:
    return f"version {version}"


class Lessons:
    """Teaches one engine."""

    def __init__(self, engine: Engine, database: Database) -> None:
        self._engine = engine
        self._database = database
        self._next_look = 0.0  # loop time

    async def version(self, name: str, directory: Path) -> None:
        """What comes with a version: ``directory`` is its adapter's."""
        path = directory.parent / REPLIES
        texts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        for text in texts:
            self._teach(version_scope(name), text, None)
            await asyncio.sleep(0)  # hundreds of texts: replies go on between them

    def agents(self, site: str, conversation: str, events: Iterable[Event]) -> None:
        """The words of agents in a conversation."""
        for event in events:
            if event.type == "message.created" and event.data["role"] == "agent":
                self._teach(site_scope(site), str(event.data["text"]), conversation)

    async def approved(self) -> None:
        """What staff approved, if it is time to look again. Raises StoreUnavailable."""
        now = asyncio.get_running_loop().time()
        if now < self._next_look:
            return
        self._next_look = now + APPROVED_SECONDS
        found = await asyncio.to_thread(
            lambda: list(approved_replies(self._database, APPROVED_CONVERSATIONS))
        )
        for site, conversation, text in found:
            self._teach(site_scope(site), text, conversation)
            await asyncio.sleep(0)
        log.debug("worker.lessons", approved=len(found))

    def _teach(self, scope: str, text: str, conversation: str | None) -> None:
        ids = self._engine.tokenizer.encode(text, add_special_tokens=False)
        self._engine.teach(scope, ids, conversation)
