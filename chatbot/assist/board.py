"""Where desks ask for drafts and workers put them. A draft is help, not a promise: what is lost
with the store or a worker is asked for again.

``fd:assist:jobs`` is a list of ``{conversation, upto}``; ``fd:assist:asked:<cid>:<upto>`` keeps a
question from being asked twice. The newest draft set lies beside the conversation's log and is
erased with it. A publication on ``fd:assist`` names the conversation whose set changed: a wake-up,
never data.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from chatbot.assist.drafts import Draft
from chatbot.assist.hints import Hint
from chatbot.conversation.events import ConversationId
from chatbot.conversation.keys import keys_of
from chatbot.conversation.store import as_text, call_store

JOBS = "fd:assist:jobs"
ASKED = "fd:assist:asked:{cid}:{upto}"
ASSIST_CHANNEL = "fd:assist"
ASKED_SECONDS = 60  # a question whose worker died is asked again after this
SET_SECONDS = 3600
# Of a conversation that was erased meanwhile nothing is kept. KEYS: head, drafts.
_PUT = """
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
end
"""
MOST_JOBS = 200  # older questions are dropped: nobody waits for them any more


@dataclass(frozen=True, slots=True)
class AssistJob:
    conversation_id: ConversationId
    upto: int


@dataclass(frozen=True, slots=True)
class DraftSet:
    """Drafts for the question at ``upto``, best first, and what past agents did next there.
    ``complete``: nothing more comes."""

    id: str
    upto: int
    version: str
    drafts: tuple[Draft, ...] = field(default=())
    complete: bool = False
    hints: tuple[Hint, ...] = field(default=())

    def to_wire(self) -> dict[str, Any]:
        return {
            "suggestions_id": self.id,
            "upto": self.upto,
            "version": self.version,
            "drafts": [draft.to_wire() for draft in self.drafts],
            "complete": self.complete,
            "hints": [hint.to_wire() for hint in self.hints],
        }

    def draft(self, draft_id: str) -> Draft | None:
        return next((draft for draft in self.drafts if draft.id == draft_id), None)


class AssistBoard:
    """Every method may raise StoreUnavailable or StorageFull."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._put = redis.register_script(_PUT)

    async def ask(self, job: AssistJob) -> bool:
        """Ask once for drafts; False when somebody has asked already."""
        name = ASKED.format(cid=job.conversation_id, upto=job.upto)
        fresh = await call_store(lambda: self._redis.set(name, 1, nx=True, ex=ASKED_SECONDS))
        if not fresh:
            return False
        text = json.dumps({"conversation": job.conversation_id, "upto": job.upto})
        await call_store(lambda: self._redis.lpush(JOBS, text))
        await call_store(lambda: self._redis.ltrim(JOBS, 0, MOST_JOBS - 1))
        return True

    async def take(self, block_seconds: float) -> AssistJob | None:
        """The newest question, since its agent is the likeliest to wait; None when there was
        none in time."""
        found = await call_store(lambda: self._redis.blpop([JOBS], timeout=block_seconds))
        if found is None:
            return None
        fields = json.loads(as_text(found[1]))
        return AssistJob(ConversationId(fields["conversation"]), int(fields["upto"]))

    async def put(self, conversation_id: ConversationId, drafts: DraftSet) -> None:
        names = keys_of(conversation_id)
        text = json.dumps(drafts.to_wire())
        await call_store(
            lambda: self._put(keys=[names.head, names.drafts], args=[text, SET_SECONDS])
        )
        await call_store(lambda: self._redis.publish(ASSIST_CHANNEL, conversation_id))

    async def get(self, conversation_id: ConversationId) -> DraftSet | None:
        name = keys_of(conversation_id).drafts
        text = await call_store(lambda: self._redis.get(name))
        if text is None:
            return None
        fields = json.loads(as_text(text))
        drafts = tuple(Draft(**draft) for draft in fields["drafts"])
        hints = tuple(Hint(**hint) for hint in fields["hints"])
        name, upto, version = fields["suggestions_id"], fields["upto"], fields["version"]
        return DraftSet(name, upto, version, drafts, fields["complete"], hints)
