"""One reply: from a leased job to its last character in the log.

Three things run at once: the engine's stream is read into a buffer, the buffer is written to the
log in pieces (never one round trip per token), and the lease is renewed. The store decides: as
soon as it says ``lost`` (stopped, handed over, taken over) the engine's request is cancelled.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import structlog
from opentelemetry import trace

from chatbot.conversation.events import Lease, ReplyEnd
from chatbot.conversation.interface import DeltaOutcome
from chatbot.conversation.transcript import conversation_messages
from chatbot.engine.interface import Chunk, GenerationRequest, SamplingParams, Usage
from chatbot.errors import (
    Conflict,
    FrontdeskError,
    Overloaded,
    ReplyTooSlow,
    StorageFull,
    StoreUnavailable,
)
from chatbot.prompt import encode_prompt, system_tokens
from chatbot.tracing import span
from chatbot.worker.lessons import site_scope, version_scope
from chatbot.worker.tools import Tools

log = structlog.get_logger()

FLUSH_SECONDS = 0.04  # between two writes of deltas: 25 a second look fluent to a reader
STORE_PATIENCE = 60.0  # seconds that a reply outlives an absent store
STORE_RETRY = 0.25  # seconds between tries meanwhile


class Lost(Exception):
    """The reply is not this worker's any more."""


@dataclass(frozen=True, slots=True)
class Result:
    """How this worker left a reply. ``pause``: seconds not to take another job, because what it
    needs is not there now."""

    outcome: str  # one of metrics.OUTCOMES
    pause: float = 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens that the engine computed, and for whom."""

    site: str
    visitor: str
    tokens: int


class _Buffer:
    """Text that the engine gave and the log does not have yet. It cannot hold more than one reply,
    which ``reply_max_tokens`` bounds."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._news = asyncio.Event()
        self._ended = asyncio.Event()
        self.last: Chunk | None = None
        self.tokens = 0  # given by the engine so far
        self.late = False

    def add(self, chunk: Chunk) -> None:
        self._pieces.append(chunk.text)
        self.tokens += len(chunk.token_ids)
        if chunk.finish_reason is not None:
            self.last = chunk
        self._news.set()

    def end(self) -> None:
        self._ended.set()
        self._news.set()

    def expire(self) -> None:
        """The time for this reply is over: what is there is all."""
        self.late = self.last is None
        self.end()

    def computed(self, prompt_tokens: int) -> int:
        """Tokens that the engine computed (see :mod:`chatbot.budgets`)."""
        usage = self.last.usage if self.last is not None else None
        if usage is not None:
            return usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens
        return prompt_tokens + self.tokens if self.tokens else 0

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    async def take(self) -> str:
        """Everything that is there; waits until there is something, or the end."""
        await self._news.wait()
        self._news.clear()
        text = "".join(self._pieces)
        self._pieces.clear()
        return text

    async def rest(self, seconds: float) -> None:
        """Let more come together, unless the end is there."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)


class ReplyWriter:
    """Writes one reply. Use once: :meth:`run`."""

    def __init__(self, tools: Tools, lease: Lease) -> None:
        self._tools = tools
        self._lease = lease
        self._text = lease.streamed
        self._version = ""
        self._payer: tuple[str, str] | None = None  # site and visitor
        self._tokens = 0  # computed for this reply
        self._request_id = f"{lease.reply_id}.{lease.fence}"
        self._began = asyncio.get_running_loop().time()
        self._log = log.bind(reply=lease.reply_id, attempt=lease.attempt)

    async def run(self) -> Result:
        """Write the reply to its end, whatever that is. Raises only CancelledError, with the job
        given back."""
        work = asyncio.create_task(self._write(), name=f"reply {self._request_id}")
        heart = asyncio.create_task(self._keep_lease(), name=f"lease {self._request_id}")
        try:
            await asyncio.wait({work, heart}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                heart.result()  # its error, if it did not just lose the lease
                raise Lost
            return await self._settle(work)
        except Lost:
            return Result("lost")
        except asyncio.CancelledError:
            await _end(work)
            await self._give_back()
            raise
        finally:
            await _end(heart)
            await _end(work)

    @property
    def cost(self) -> Cost | None:
        """What the reply cost a visitor so far; None when there is none."""
        if self._payer is None or not self._tokens:
            return None
        return Cost(*self._payer, self._tokens)

    async def _settle(self, work: "asyncio.Task[Result]") -> Result:
        """The result of the work, or what its error means for the conversation."""
        try:
            return await work
        except Lost:
            raise
        except (Overloaded, StoreUnavailable, StorageFull) as error:
            return await self._later(error)
        except FrontdeskError as error:
            self._log.error("worker.reply_failed", version=self._version, error=str(error))
            return await self._fail(error.code)
        except Exception:
            self._log.exception("worker.reply_failed", version=self._version)
            return await self._fail("internal")

    async def _later(self, error: FrontdeskError) -> Result:
        """No room in the engine, or a store is away: give the job back; people are asked when the
        visitor has waited too long."""
        waited = self._lease.waited + asyncio.get_running_loop().time() - self._began
        self._log.warning("worker.reply_put_off", waited=round(waited, 1), error=str(error))
        if waited > self._tools.settings.queue_seconds:
            self._tools.metrics.limited("queue_seconds")
            return await self._fail(error.code)
        await self._give_back()
        pause = error.retry_after if isinstance(error, Overloaded) else 1.0
        return Result("released", pause)

    async def _give_back(self) -> None:
        try:
            await self._tools.log.release(self._lease)
        except (StoreUnavailable, StorageFull) as error:
            self._log.warning("worker.release_failed", error=str(error))  # the lease runs out

    async def _fail(self, reason: str) -> Result:
        try:
            outcome = await self._tools.log.fail_reply(
                self._lease, version=self._version, reason=reason
            )
        except (StoreUnavailable, StorageFull) as error:
            self._log.warning("worker.fail_failed", error=str(error))  # the lease runs out
            return Result("released", 1.0)
        return Result("failed" if outcome == "written" else "lost")

    async def _keep_lease(self) -> None:
        """Renew until the lease is lost: covers queueing, loading an adapter and prefill."""
        while True:
            await asyncio.sleep(self._tools.settings.lease_seconds / 3)
            try:
                if await self._tools.log.renew(self._lease) == "lost":
                    return
            except (StoreUnavailable, StorageFull) as error:
                self._log.warning("worker.renew_failed", error=str(error))

    # -- the work

    async def _write(self) -> Result:
        tools, lease = self._tools, self._lease
        catchup = await tools.log.catch_up(lease.conversation_id, None, None)
        head, live = catchup.head, catchup.live
        if head.kind == "chat":
            self._payer = head.site, head.visitor
        if live is not None and live.reply_id == lease.reply_id:
            self._version = live.version  # who began it ends it
        else:
            self._version = head.pinned_version or await tools.context.live_version()
        async with tools.adapters.use(self._version) as adapter:
            self._held(await tools.log.start_reply(lease, self._version))
            budget = min(tools.settings.reply_max_tokens, tools.engine.max_context // 2)
            done = self._streamed_tokens()
            with span("reply.prompt") as current:
                prompt = await tools.context.system_prompt(head.site)
                events = [event for event in catchup.events if event.offset <= lease.upto]
                messages = conversation_messages(events, prompt)
                # the first attempt cut at the same turn
                room = tools.engine.max_context - budget + done
                ids = encode_prompt(messages, tools.engine.tokenizer, room, lease.streamed)
                current.set_attribute("tokens", len(ids))
            if done >= budget:
                return await self._complete(Chunk("", (), "length", Usage(len(ids), 0, 0)), done)
            scopes: tuple[str, ...] = ()
            if head.kind == "chat":
                tools.lessons.agents(head.site, lease.conversation_id, events)
                scopes = (site_scope(head.site), version_scope(self._version))
            request = GenerationRequest(
                self._request_id,
                tuple(ids),
                self._sampling(budget - done),
                adapter,
                shared_tokens=system_tokens(messages, tools.engine.tokenizer),
                owner=lease.conversation_id,
                draft_scopes=scopes,
            )
            with span("reply.generate", version=self._version) as current:
                last = await self._stream(request)
                if last.usage is not None:
                    current.set_attribute("tokens", last.usage.completion_tokens)
                    current.set_attribute("cached_tokens", last.usage.cached_tokens)
            return await self._complete(last, done)

    def _streamed_tokens(self) -> int:
        """Tokens of the text that earlier attempts streamed: they count for the length."""
        if not self._lease.streamed:
            return 0
        encoded = self._tools.engine.tokenizer.encode(
            self._lease.streamed, add_special_tokens=False
        )
        return len(encoded)

    def _sampling(self, max_tokens: int) -> SamplingParams:
        settings = self._tools.settings
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            repetition_penalty=settings.repetition_penalty,
        )

    async def _stream(self, request: GenerationRequest) -> Chunk:
        """Run the request and write its text to the log; the last chunk. What the engine has not
        written within ``reply_seconds`` is left out.

        Raises:
            ReplyTooSlow: it wrote nothing in that time.
        """
        buffer = _Buffer()
        stream = self._tools.engine.submit(request)
        pump = asyncio.create_task(_pump(stream, buffer), name=f"pump {self._request_id}")
        end = asyncio.get_running_loop().call_later(
            self._tools.settings.reply_seconds, buffer.expire
        )
        try:
            while True:
                text = await buffer.take()
                ended = buffer.ended  # looked at before anything is awaited: text is all then
                await self._append(text)
                if ended:
                    break
                await buffer.rest(FLUSH_SECONDS)
            if buffer.late:
                return self._cut(buffer, len(request.prompt_ids))
            await pump
        finally:
            end.cancel()
            self._tokens = buffer.computed(len(request.prompt_ids))
            if not pump.done():
                await self._tools.engine.cancel(self._request_id)
            await _end(pump)
        if buffer.last is None or buffer.last.finish_reason == "stopped":
            raise Overloaded("the engine stopped before the reply was at its end")
        return buffer.last

    def _cut(self, buffer: _Buffer, prompt_tokens: int) -> Chunk:
        """The end of a reply whose time is over."""
        seconds = self._tools.settings.reply_seconds
        self._tools.metrics.limited("reply_seconds")
        self._log.warning("worker.reply_too_slow", seconds=seconds, tokens=buffer.tokens)
        if not self._text:
            raise ReplyTooSlow(f"the engine wrote nothing within {seconds:g} s")
        return Chunk("", (), "length", Usage(prompt_tokens, 0, buffer.tokens))

    async def _append(self, text: str) -> None:
        if not text:
            return
        start, self._text = len(self._text), self._text + text
        first = start == 0
        try:
            outcome = await self._patiently(
                lambda: self._tools.log.append_delta(self._lease, start, text)
            )
        except Conflict as error:
            outcome = await self._append_again(error)
        self._held(outcome)
        if first:
            trace.get_current_span().add_event("first_text")
            elapsed = asyncio.get_running_loop().time() - self._began
            self._tools.metrics.first_text.observe(self._lease.waited + elapsed)

    async def _append_again(self, error: Conflict) -> DeltaOutcome:
        """The store lost its last writes and has less of the text than was sent: send the rest
        again. Having more is an error: two workers would be writing."""
        length = int(str(error.data.get("length", len(self._text) + 1)))
        if length >= len(self._text):
            raise error
        self._log.warning("worker.text_sent_again", from_char=length)
        # the announcement may be lost as well; making it twice is making it once
        self._held(
            await self._patiently(lambda: self._tools.log.start_reply(self._lease, self._version))
        )
        rest = self._text[length:]
        return await self._patiently(
            lambda: self._tools.log.append_delta(self._lease, length, rest)
        )

    async def _complete(self, last: Chunk, streamed_tokens: int) -> Result:
        finish: ReplyEnd = "length" if last.finish_reason == "length" else "end"
        usage = last.usage or Usage()
        seconds = asyncio.get_running_loop().time() - self._began

        def complete() -> Awaitable[DeltaOutcome]:
            return self._tools.log.complete_reply(
                self._lease,
                text=self._text,
                finish_reason=finish,
                version=self._version,
                usage={
                    "prompt_tokens": usage.prompt_tokens - streamed_tokens,
                    "cached_tokens": usage.cached_tokens,
                    "completion_tokens": usage.completion_tokens + streamed_tokens,
                },
                confidence=last.confidence,
                seconds=seconds,
            )

        try:
            outcome = await self._patiently(complete)
        except Conflict as error:
            self._held(await self._append_again(error))
            outcome = await self._patiently(complete)
        self._held(outcome)
        self._tools.metrics.seconds.observe(seconds)
        return Result(finish)

    async def _patiently(self, call: Callable[[], Awaitable[DeltaOutcome]]) -> DeltaOutcome:
        """Try again while the store is away: the text is in the buffer and need not be written
        twice by the model. The store refuses what came too late."""
        deadline = asyncio.get_running_loop().time() + STORE_PATIENCE
        while True:
            try:
                return await call()
            except (StoreUnavailable, StorageFull) as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                self._log.warning("worker.store_away", error=str(error))
                await asyncio.sleep(STORE_RETRY)

    def _held(self, outcome: DeltaOutcome) -> None:
        if outcome == "lost":
            raise Lost


async def _pump(stream: AsyncIterator[Chunk], buffer: _Buffer) -> None:
    try:
        async for chunk in stream:
            buffer.add(chunk)
    finally:
        buffer.end()
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


async def _end(task: "asyncio.Task[object]") -> None:
    """Cancel a task and wait for it; its error, if any, was or will be dealt with elsewhere."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
