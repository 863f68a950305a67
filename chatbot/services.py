"""What the processes share: the opened stores. :mod:`chatbot.bootstrap` builds and closes it."""

from dataclasses import dataclass

from redis.asyncio import Redis

from chatbot.conversation.archive import Archive
from chatbot.conversation.interface import ConversationLog
from chatbot.record.database import Database
from chatbot.settings import Settings
from chatbot.training_runs import TrainingRuns
from chatbot.versions import Versions


@dataclass(frozen=True, slots=True)
class Services:
    """Opened once per process. ``secret_key`` signs visitor and staff tokens; ``admin_token`` is
    the API token that `up` writes to the data directory."""

    settings: Settings
    redis: Redis
    log: ConversationLog
    database: Database
    archive: Archive
    versions: Versions
    runs: TrainingRuns
    secret_key: str
    admin_token: str
