"""What may be retrieved: what the version at work learned from, and what people said since.

Two indexes. The large one holds the run's own training dialogues, redacted as they were trained
on (``<data_dir>/runs/<run id>/train.jsonl``; a worker on a machine without that folder goes
without). The small one holds the record: agents' own words, and replies that reviewers corrected
or marked good, but for those that hold personal data; it is built anew now and then. Both are
built in a thread, and nobody waits for them: until they are there, drafts come from the model
alone.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import structlog
from sqlalchemy import select

from chatbot.assist.hints import Hint, hints_of
from chatbot.assist.retrieval import (
    ANY,
    Example,
    Match,
    ReplyIndex,
    Situation,
    examples_of,
    vote,
)
from chatbot.conversation.archive import Archive
from chatbot.conversation.events import ConversationId
from chatbot.conversation.transcript import placed_messages
from chatbot.errors import FrontdeskError
from chatbot.prompt import ChatMessage
from chatbot.record.database import Database
from chatbot.record.tables import Conversation, EventRow
from chatbot.redaction import find
from chatbot.review_data import reviewed_dialogues, site_prompts
from chatbot.versions import Versions

log = structlog.get_logger()
REFRESH_SECONDS = 300.0  # how old the index of the record may be
MOST_CONVERSATIONS = 2000  # of the record, the latest
TRAINED = "a past conversation"


class Memory:
    """One per worker; its methods are for one event loop."""

    def __init__(
        self, database: Database, versions: Versions, data_dir: Path, default_prompt: str
    ) -> None:
        self._database = database
        self._versions = versions
        self._data_dir = data_dir
        self._default_prompt = default_prompt
        self._trained: dict[str, ReplyIndex] = {}  # of the version asked for last
        self._recent = ReplyIndex(())
        self._recent_at: float | None = None
        self._building: asyncio.Task[None] | None = None

    async def closest(self, version: str, situation: Situation, most: int) -> list[Match]:
        """The closest past replies, best first; of what has been indexed so far."""
        self._keep_fresh(version)
        return await asyncio.to_thread(_search, self._indexes(version), situation, most)

    async def hints(self, version: str, situation: Situation) -> list[Hint]:
        """What past agents did next in the closest moments, whatever they had looked up."""
        self._keep_fresh(version)
        asked = replace(situation, tool=ANY, looked_up=ANY)
        return await asyncio.to_thread(lambda: hints_of(_near(self._indexes(version), asked)))

    def _indexes(self, version: str) -> list[ReplyIndex]:
        trained = (index for name, index in self._trained.items() if name == version)
        return [self._recent, *trained]

    async def ready(self, version: str) -> None:
        """Wait until both indexes are there."""
        self._keep_fresh(version)
        if self._building is not None:
            await self._building

    async def close(self) -> None:
        if self._building is not None:
            await asyncio.wait({self._building})

    def _keep_fresh(self, version: str) -> None:
        now = asyncio.get_running_loop().time()
        stale = self._recent_at is None or now - self._recent_at > REFRESH_SECONDS
        busy = self._building is not None and not self._building.done()
        if not busy and (stale or version not in self._trained):
            self._building = asyncio.create_task(self._build(version), name="assist.index")

    async def _build(self, version: str) -> None:
        if version not in self._trained:
            self._trained = {version: await asyncio.to_thread(self._trained_index, version)}
        try:
            self._recent = await asyncio.to_thread(self._recent_index)
        except FrontdeskError as error:
            log.warning("assist.record_away", error=str(error))
        self._recent_at = asyncio.get_running_loop().time()

    def _trained_index(self, version: str) -> ReplyIndex:
        path = self._dataset(version)
        if path is None or not path.is_file():
            log.info("assist.no_training_data", version=version)
            return ReplyIndex(())
        with path.open(encoding="utf-8") as lines:
            index = ReplyIndex(
                example
                for line in lines
                for example in examples_of(json.loads(line)["messages"], TRAINED)
            )
        log.info("assist.indexed", version=version, replies=len(index))
        return index

    def _dataset(self, version: str) -> Path | None:
        try:
            run = self._versions.get(version).manifest.get("run_id")
        except FrontdeskError as error:
            log.warning("assist.version_unknown", version=version, error=str(error))
            return None
        return self._data_dir / "runs" / str(run) / "train.jsonl" if run else None

    def _recent_index(self) -> ReplyIndex:
        prompt_of = site_prompts(self._database, self._default_prompt)
        reviewed = (
            example
            for dialogue in reviewed_dialogues(self._database, prompt_of)
            for example in examples_of(dialogue["messages"], str(dialogue["meta"]["id"]))
        )
        written = (
            example
            for name in self._written_by_agents()
            for example in self._agent_examples(name, prompt_of)
        )
        # a reply that holds somebody's data is for them alone
        shareable = (example for example in [*reviewed, *written] if not find(example.reply))
        return ReplyIndex(dict.fromkeys(shareable))

    def _written_by_agents(self) -> list[str]:
        wrote = select(EventRow.conversation_id).where(
            EventRow.type == "message.created", EventRow.data["role"].as_string() == "agent"
        )
        wanted = (
            select(Conversation.id)
            .where(~Conversation.excluded, Conversation.id.in_(wrote))
            .order_by(Conversation.updated_at.desc())
            .limit(MOST_CONVERSATIONS)
        )
        with self._database.session() as session:
            return list(session.scalars(wanted))

    def _agent_examples(self, name: str, prompt_of: Callable[[str], str]) -> Iterator[Example]:
        loaded = Archive(self._database).load(ConversationId(name))
        if loaded is None:
            return  # erased since
        row, events = loaded
        prompt = prompt_of(row.site)
        messages: list[ChatMessage] = [{"role": "system", "content": prompt}] if prompt else []
        for event, message in placed_messages(events):
            own = event.type == "message.created" and message["role"] == "assistant"
            messages.append({**message, "weight": int(own)})
        yield from examples_of(messages, name)


def _search(indexes: list[ReplyIndex], situation: Situation, most: int) -> list[Match]:
    return vote(_near(indexes, situation))[:most]


def _near(indexes: list[ReplyIndex], situation: Situation) -> list[tuple[float, Example]]:
    return [neighbour for index in indexes for neighbour in index.nearest(situation)]
