"""Drafts for agents, beside the replies: the closest past replies at once, then the model's own.

A draft is help. So this work yields: a few questions at a time, none while an engine is full, and
what fails is left undone; the agent writes by hand. It is watched, too: as soon as the question
is not the open one any more, the model stops.
"""

import asyncio
import contextlib
import secrets

import structlog

from chatbot.assist.board import AssistBoard, AssistJob, DraftSet
from chatbot.assist.drafts import MOST, Draft, Written, rank
from chatbot.assist.hints import Hint
from chatbot.assist.memory import Memory
from chatbot.assist.retrieval import Match, situation_of
from chatbot.conversation.interface import Catchup
from chatbot.conversation.transcript import conversation_messages
from chatbot.crew import end_tasks
from chatbot.engine.interface import Chunk, GenerationRequest, SamplingParams
from chatbot.errors import FrontdeskError
from chatbot.prompt import ChatMessage, encode_prompt, system_tokens
from chatbot.services import Services
from chatbot.worker.lessons import version_scope
from chatbot.worker.tools import Tools

log = structlog.get_logger()
TAKE_SECONDS = 1.0
PAUSE_SECONDS = 1.0  # when the store is away
FLUSH_SECONDS = 0.1  # between two looks of the agent at a growing draft
CANDIDATES = 60  # past replies that are ranked


class Assistant:
    """Takes agents' questions and drafts until it is cancelled."""

    def __init__(self, tools: Tools, services: Services) -> None:
        self._tools = tools
        self._board = AssistBoard(services.redis)
        self._memory = Memory(
            services.database,
            services.versions,
            services.settings.data_dir,
            services.settings.system_prompt,
        )
        self._most = services.settings.assist_running

    async def run(self) -> None:
        """For ever; ends what runs when cancelled."""
        if not self._most:
            return
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                if len(running) >= self._most:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    continue
                job = await self._take()
                if job is not None:
                    task = asyncio.create_task(self._serve(job), name="assist")
                    running.add(task)
                    task.add_done_callback(running.discard)
        finally:
            await end_tasks(running)
            await self._memory.close()

    async def _take(self) -> AssistJob | None:
        try:
            return await self._board.take(TAKE_SECONDS)
        except FrontdeskError as error:
            log.debug("assist.store_away", error=str(error))
            await asyncio.sleep(PAUSE_SECONDS)
            return None

    async def _serve(self, job: AssistJob) -> None:
        try:
            await Drafting(self._tools, self._board, self._memory, job).run()
        except FrontdeskError as error:
            log.warning("assist.not_drafted", conversation=job.conversation_id, error=str(error))
        except Exception:  # a bug here must not cost the worker its replies
            log.exception("assist.bug", conversation=job.conversation_id)


class Drafting:
    """The drafts for one question. Use once: :meth:`run`."""

    def __init__(self, tools: Tools, board: AssistBoard, memory: Memory, job: AssistJob) -> None:
        self._tools = tools
        self._board = board
        self._memory = memory
        self._job = job
        self._id = secrets.token_hex(8)
        self._version = ""
        self._matches: list[Match] = []
        self._hints: tuple[Hint, ...] = ()

    async def run(self) -> None:
        catchup = await self._tools.log.catch_up(self._job.conversation_id, None, None)
        if not self._is_open(catchup):
            return
        head = catchup.head
        self._version = head.pinned_version or await self._tools.context.live_version()
        prompt = await self._tools.context.system_prompt(head.site)
        messages = conversation_messages(catchup.events, prompt)
        situation = situation_of(messages)
        self._matches = await self._memory.closest(self._version, situation, CANDIDATES)
        self._hints = tuple(await self._memory.hints(self._version, situation))
        await self._show(None)
        async with self._tools.adapters.use(self._version) as adapter:
            own = await self._write(messages, adapter)
        if own is not None:
            await self._show(own, complete=True)

    def _is_open(self, catchup: Catchup) -> bool:
        head = catchup.head
        return head.status in ("waiting", "human") and head.question == self._job.upto

    async def _still_open(self) -> bool:
        head = await self._tools.log.head(self._job.conversation_id)
        return head is not None and head.question == self._job.upto

    async def _write(self, messages: list[ChatMessage], adapter: str | None) -> Written | None:
        """The model's own draft, shown as it grows; None when the conversation moved on."""
        engine, settings = self._tools.engine, self._tools.settings
        budget = min(settings.reply_max_tokens, engine.max_context // 2)
        ids = encode_prompt(messages, engine.tokenizer, engine.max_context - budget)
        request = GenerationRequest(
            f"assist-{self._id}",
            tuple(ids),
            SamplingParams(max_tokens=budget),
            adapter,
            shared_tokens=system_tokens(messages, engine.tokenizer),
            owner=self._job.conversation_id,  # what the bot's replies left in the cache, too
            draft_scopes=(version_scope(self._version),),
        )
        text, last = "", Chunk("")
        loop = asyncio.get_running_loop()
        shown_at = loop.time()
        async with contextlib.aclosing(engine.submit(request)) as stream:
            async for chunk in stream:
                text += chunk.text
                last = chunk
                if loop.time() - shown_at >= FLUSH_SECONDS:
                    if not await self._still_open():
                        return None
                    await self._show(Written(self._draft(text, 0.0), 0.0))
                    shown_at = loop.time()
        if not await self._still_open():
            return None
        # a model server that tells no probabilities is believed like an even vote
        probability = 0.5 if last.probability is None else last.probability
        return Written(self._draft(text, last.confidence or 0.0), probability)

    def _draft(self, text: str, confidence: float) -> Draft:
        return Draft("m0", text, "model", confidence, self._version)

    async def _show(self, own: Written | None, *, complete: bool = False) -> None:
        """Put what there is on the board. A draft that grows stands last until it is whole."""
        if complete or own is None:
            drafts = rank(own, self._matches)
        else:
            drafts = [*rank(None, self._matches, MOST - 1), own.draft]
        await self._board.put(
            self._job.conversation_id,
            DraftSet(self._id, self._job.upto, self._version, tuple(drafts), complete, self._hints),
        )
