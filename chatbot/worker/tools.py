"""What all the work of one worker shares."""

from dataclasses import dataclass

from chatbot.conversation.interface import ConversationLog
from chatbot.engine.interface import Engine
from chatbot.settings import Settings
from chatbot.worker.adapters import Adapters
from chatbot.worker.context import ReplyContext
from chatbot.worker.lessons import Lessons
from chatbot.worker.metrics import WorkerMetrics


@dataclass(frozen=True, slots=True)
class Tools:
    log: ConversationLog
    engine: Engine
    settings: Settings
    adapters: Adapters
    context: ReplyContext
    metrics: WorkerMetrics
    lessons: Lessons
