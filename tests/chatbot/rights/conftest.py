"""Real stores, and people who have said something."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from chatbot.conversation.archive import Archiver
from chatbot.conversation.events import ConversationId, VisitorId
from chatbot.record.database import Database
from chatbot.rights.erasure import Eraser
from chatbot.rights.people import Person
from chatbot.services import Services
from tests.chatbot.conversation.steps import answer, ask
from tests.chatbot.server.room import make_services

ANNA = Person("demo", "v-anna")
Talk = Callable[..., Awaitable[ConversationId]]


@pytest.fixture
def services(redis: Redis, database: Database, tmp_path: Path) -> Services:
    return make_services(redis, database, tmp_path)


@pytest.fixture
def eraser(services: Services) -> Eraser:
    return Eraser(services.database, services.log, services.runs, services.settings.data_dir)


@pytest.fixture
def talk(services: Services) -> Talk:
    """``await talk("c1", "hello", person=ANNA)``: a message and its reply, recorded."""

    async def say(
        name: str, text: str = "hello", *, person: Person = ANNA, recorded: bool = True
    ) -> ConversationId:
        cid = ConversationId(name)
        await services.log.create(cid, site=person.site, visitor=VisitorId(person.visitor))
        await ask(services.log, cid, text)
        await answer(services.log)
        if recorded:
            await Archiver(services.log, services.archive).copy_once()
        return cid

    return say
