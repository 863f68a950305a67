"""The torch engine: one thread that runs ``schedule -> run -> commit``, and its asyncio side.

Requests enter the scheduler directly, under a lock that is never held while the model computes.
Each step's output crosses to the event loop in one call. The queue of a reply can hold all of
it, ``max_tokens`` chunks and the end: that is the bound on what a slow reader can cost.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog
import torch

from chatbot.engine.interface import Chunk, EngineStats, GenerationRequest
from chatbot.engine.torch.adapters import LoraAdapter, load_adapter
from chatbot.engine.torch.blocks import BLOCK_SIZE, BlockManager
from chatbot.engine.torch.device import release_memory, resolve_device, resolve_dtype, use_threads
from chatbot.engine.torch.draft_policy import DraftPolicy
from chatbot.engine.torch.drafts import ReplyDrafter
from chatbot.engine.torch.families import build_decoder
from chatbot.engine.torch.merging import Merger, merged_decoder
from chatbot.engine.torch.models import Decoder, packable
from chatbot.engine.torch.pace import GRAIN, PrefillPace
from chatbot.engine.torch.reply import Reply, TorchReplyStream
from chatbot.engine.torch.runner import Runner, TorchRunner
from chatbot.engine.torch.sampling import Choice, TokenChooser
from chatbot.engine.torch.scheduler import Scheduler, Step
from chatbot.engine.torch.sequence import Sequence, cache_namespace
from chatbot.engine.torch.text import Detokenizer, StopStrings
from chatbot.errors import (
    BaseModelUnavailable,
    FrontdeskError,
    ModelError,
    Overloaded,
    RequestRefused,
)
from chatbot.prompt import Tokenizer
from chatbot.settings import Settings

LoadModel = Callable[[str, Path, torch.dtype, str], Any]
LoadTokenizer = Callable[[str, Path], Any]
MakeRunner = Callable[[Decoder, int, int], Runner]  # (decoder, blocks, block size)
Output = tuple[Reply, Chunk | FrontdeskError]
log = structlog.get_logger(__name__)


class TorchEngine:
    """See :class:`chatbot.engine.interface.Engine`.

    ``load_model(name, data_dir, dtype, device)`` returns a transformers model,
    ``load_tokenizer(name, data_dir)`` its tokenizer.
    """

    prompts_apart = False  # see Scheduler

    def __init__(
        self,
        settings: Settings,
        load_model: LoadModel,
        load_tokenizer: LoadTokenizer,
        make_runner: MakeRunner = TorchRunner,
        draft_policy: DraftPolicy | None = None,
    ) -> None:
        self._settings = settings
        policy = draft_policy or DraftPolicy()
        self._cost = policy.cost  # of a step by its rows: for drafts and for the pace of prompts
        self._drafter: ReplyDrafter | None = None
        if settings.max_draft_tokens:
            self._drafter = ReplyDrafter(settings.max_draft_tokens, policy)
        self._make_runner = make_runner
        self._load_model = load_model
        self._load_tokenizer = load_tokenizer
        self._threads = settings.engine_threads or torch.get_num_threads()
        # a second team of OpenMP threads, even an idle one, makes those of the first sleep between
        # operations; so the engine's thread alone has one
        self._loader = ThreadPoolExecutor(
            1, "engine-loader", initializer=use_threads, initargs=(1,)
        )
        self._adapter_lock = asyncio.Lock()
        self._adapters: dict[str, LoraAdapter] = {}
        self._drops: dict[LoraAdapter, asyncio.Event] = {}
        self._replies: dict[str, Reply] = {}  # changed on the event loop only
        self._changed = threading.Condition()  # guards the scheduler
        self._closing = False
        self._thread: threading.Thread | None = None
        self._last_step_seconds = 0.0
        self._loop: asyncio.AbstractEventLoop
        self._decoder: Decoder
        self._tokenizer: Tokenizer
        self._scheduler: Scheduler
        self._runner: Runner
        self._merger: Merger

    # -- life

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @property
    def max_context(self) -> int:
        return self._max_context

    async def start(self) -> None:
        if self._thread is not None:
            return
        self._loop = asyncio.get_running_loop()
        await self._loop.run_in_executor(self._loader, self._load)
        await self._loop.run_in_executor(self._loader, release_memory)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def _load(self) -> None:
        settings = self._settings
        device = resolve_device(settings.device)
        dtype, reason = resolve_dtype(settings.dtype, device)
        model = self._load_model(settings.base_model, settings.data_dir, dtype, str(device))
        self._tokenizer = self._load_tokenizer(settings.base_model, settings.data_dir)
        end_id = self._tokenizer.eos_token_id
        own_end = frozenset() if end_id is None else frozenset((end_id,))
        self._decoder = build_decoder(model, settings.max_context_tokens, own_end)
        self._decoder.pack()
        total = settings.kv_cache_tokens // BLOCK_SIZE
        self._max_context = min(self._decoder.context, total * BLOCK_SIZE)
        try:
            self._runner = self._make_runner(self._decoder, total, BLOCK_SIZE)
        except (RuntimeError, MemoryError) as error:
            raise BaseModelUnavailable(
                f"no memory on {device} for a cache of {settings.kv_cache_tokens} tokens: lower "
                "FRONTDESK_KV_CACHE_TOKENS"
            ) from error
        self._merger = self._make_merger()
        self._scheduler = self._make_scheduler(BlockManager(total))
        log.info(
            "engine loaded",
            model=settings.base_model,
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            dtype_reason=reason,
            max_context=self._max_context,
        )

    def _make_merger(self) -> Merger:
        """Merging where it is known to pay: where matrices are laid out for the processor. In
        float32 the runtime is the reference, and nothing is rounded once more."""
        most = self._settings.merged_versions if packable(self._decoder.head) else 0
        runner: Any = self._runner
        return Merger(self._adapters, runner, self._merged, most)

    def _merged(self, adapter: LoraAdapter) -> Any:
        """What the runner computes the merged adapter with."""
        settings = self._settings
        model = self._load_model(settings.base_model, settings.data_dir, torch.float32, "cpu")
        exact = build_decoder(model, settings.max_context_tokens, frozenset())
        return merged_decoder(adapter, exact, self._decoder)

    def _make_scheduler(self, blocks: BlockManager) -> Scheduler:
        settings = self._settings
        pace = PrefillPace(
            self._cost,
            settings.prefill_chunk_tokens,
            settings.prefill_stretch,
            min(GRAIN, blocks.block_size),
        )
        return Scheduler(
            blocks,
            max_running=settings.max_running,
            max_waiting=settings.max_waiting,
            prefill_chunk_tokens=settings.prefill_chunk_tokens,
            drafter=self._drafter,
            pace=pace,
            prompts_apart=self.prompts_apart,
        )

    async def close(self) -> None:
        if self._thread is not None:
            await self._merger.close()
            with self._changed:
                self._closing = True
                self._changed.notify()
            await self._loop.run_in_executor(self._loader, self._thread.join)
            self._thread = None
            self._deliver([(reply, reply.stop()) for reply in self._replies.values()])
        self._loader.shutdown(wait=True)

    # -- adapters

    async def load_adapter(self, name: str, directory: Path) -> None:
        self._require_running()
        async with self._adapter_lock:
            if name in self._adapters:
                return
            self._adapters[name] = await self._loop.run_in_executor(
                self._loader, load_adapter, name, Path(directory), self._decoder
            )
        self._merger.look()

    async def drop_adapter(self, name: str) -> None:
        adapter = self._adapters.pop(name, None)
        if adapter is None:
            return
        await self._unused(adapter)
        before = self._merger.forget(name, adapter)
        if before is not None:
            await self._unused(before)

    async def _unused(self, adapter: LoraAdapter) -> None:
        """Wait for the adapter's last request."""
        if adapter.users:
            await self._drops.setdefault(adapter, asyncio.Event()).wait()

    # -- requests

    def submit(self, request: GenerationRequest) -> TorchReplyStream:
        self._require_running()
        reply = self._reply(request)
        with self._changed:
            self._scheduler.add(reply.sequence)
            self._replies[request.request_id] = reply
            self._changed.notify()
        if reply.sequence.adapter is not None:
            reply.sequence.adapter.users += 1
        return TorchReplyStream(reply)

    def _reply(self, request: GenerationRequest) -> Reply:
        """Check the request and make its reply. Raises RequestRefused."""
        self._check_prompt(request)
        adapter = self._adapters.get(request.adapter) if request.adapter is not None else None
        if request.adapter is not None and adapter is None:
            raise RequestRefused(f"adapter {request.adapter!r} is not loaded")
        params = request.sampling
        room = self._max_context - len(request.prompt_ids)
        chooser = TokenChooser(params, request.prompt_ids)
        sequence = Sequence(
            request.request_id,
            request.prompt_ids,
            max_tokens=min(params.max_tokens, room),
            end_ids=frozenset() if params.ignore_eos else self._decoder.end_ids,
            namespace=cache_namespace(adapter.uid if adapter else None, request.cache_salt),
            adapter=adapter,
            chooser=chooser,
            shared_tokens=request.shared_tokens,
            owner=request.owner,
            draft_scopes=request.draft_scopes,
        )
        return Reply(
            sequence,
            chooser,
            Detokenizer(self._tokenizer),
            StopStrings(params.stop),
            asyncio.Queue(sequence.max_tokens + 1),
        )

    def _check_prompt(self, request: GenerationRequest) -> None:
        ids = request.prompt_ids
        if request.request_id in self._replies:
            raise RequestRefused(f"request {request.request_id!r} is being answered already")
        if not ids:
            raise RequestRefused("the prompt is empty")
        if len(ids) >= self._max_context:
            raise RequestRefused(
                f"the prompt has {len(ids)} tokens and leaves no room for a reply: prompt and "
                f"reply together may have {self._max_context}"
            )
        if min(ids) < 0 or max(ids) >= self._decoder.vocabulary:
            raise RequestRefused(
                f"the prompt holds token ids outside 0..{self._decoder.vocabulary - 1}"
            )

    async def cancel(self, request_id: str) -> None:
        reply = self._replies.get(request_id)
        if reply is not None:
            reply.sequence.cancelled = True

    def teach(self, scope: str, token_ids: Items[int], conversation: str | None) -> None:
        if self._drafter is not None:
            with self._changed:
                self._drafter.index.teach(scope, token_ids, conversation)

    def stats(self) -> EngineStats:
        self._require_running()
        with self._changed:
            scheduler, blocks = self._scheduler, self._scheduler.blocks
            return EngineStats(
                waiting=len(scheduler.waiting),
                running=len(scheduler.running),
                blocks_total=blocks.total,
                blocks_used=blocks.used,
                blocks_cached=blocks.cached,
                prefill_tokens_computed=scheduler.prefill_tokens_computed,
                prefill_tokens_cached=scheduler.prefill_tokens_cached,
                generated_tokens=scheduler.generated_tokens,
                preemptions=scheduler.preemptions,
                evictions=blocks.evictions,
                last_step_seconds=self._last_step_seconds,
                adapters=tuple(self._adapters),
                drafts=self._drafter.counts if self._drafter is not None else (),
            )

    def _require_running(self) -> None:
        if self._thread is None or self._closing:
            raise Overloaded("the engine is not running (not started yet, or closing)")

    # -- the event loop's side of delivery

    def _deliver(self, outputs: Iterable[Output]) -> None:
        for reply, item in list(outputs):
            request_id = reply.sequence.request_id
            if self._replies.get(request_id) is not reply:
                continue  # has ended already
            reply.queue.put_nowait(item)
            if isinstance(item, FrontdeskError) or item.finish_reason is not None:
                del self._replies[request_id]
                self._let_go(reply.sequence)

    def _let_go(self, sequence: Sequence) -> None:
        adapter, sequence.adapter = sequence.adapter, None
        if adapter is None:
            return
        adapter.users -= 1
        if adapter.users == 0 and adapter in self._drops:
            self._drops.pop(adapter).set()

    # -- the engine's thread

    def _run(self) -> None:
        use_threads(self._threads)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or not self._scheduler.idle)
                if self._closing:
                    return
            started = time.perf_counter()
            self._post(self._step())
            self._last_step_seconds = time.perf_counter() - started

    def _post(self, outputs: list[Output]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, outputs)
        except RuntimeError:  # the event loop was closed before the engine: nobody reads
            self._closing = True

    def _step(self) -> list[Output]:
        """One step; whatever goes wrong in it ends the requests of this step and no others."""
        step: Step | None = None
        try:
            with self._changed:
                step = self._scheduler.schedule()
            outputs: list[Output] = [
                (reply, reply.stop()) for reply in self._replies_of(step.stopped)
            ]
            if step.works:
                started = time.perf_counter()
                choices = self._runner.run(step)
                self._cost.observe(step.rows, time.perf_counter() - started)
                outputs += self._commit(step, choices)
            return outputs
        except Exception as error:
            log.exception("engine step failed", requests=self._names(step))
            return self._fail(step, _as_frontdesk_error(error))

    def _commit(self, step: Step, choices: list[Choice]) -> list[Output]:
        pairs = list(zip(step.sampling, choices, strict=True))
        # logits that are not finite, from weights or an adapter gone bad
        broken = [work.sequence for work, choice in pairs if choice.broken]
        with self._changed:
            for sequence in broken:
                self._scheduler.finish(sequence, None, keep=False)
            self._scheduler.commit(step, [choice.tokens for choice in choices])
        outputs: list[Output] = [
            (reply, ModelError("the model computed values that are not finite numbers"))
            for reply in self._replies_of(broken)
        ]
        for work, choice in pairs:
            reply = self._replies.get(work.sequence.request_id)
            if work.sequence in broken or reply is None:
                continue
            chunk = reply.advance(choice)
            outputs.append((reply, chunk))
            if chunk.finish_reason is not None and work.sequence.finish_reason is None:
                with self._changed:  # a stop string: only the text could tell
                    self._scheduler.finish(work.sequence, chunk.finish_reason)
        return outputs

    def _fail(self, step: Step | None, error: FrontdeskError) -> list[Output]:
        with self._changed:
            if step is None:  # the scheduler itself failed: nothing of its state can be trusted
                failed = [*self._scheduler.running, *self._scheduler.waiting]
            else:
                failed = [work.sequence for work in step.works] + list(step.stopped)
            for sequence in failed:
                self._scheduler.finish(sequence, None, keep=False)
        return [(reply, error) for reply in self._replies_of(failed)]

    def _replies_of(self, sequences: Iterable[Sequence]) -> list[Reply]:
        found = (self._replies.get(sequence.request_id) for sequence in sequences)
        return [reply for reply in found if reply is not None]

    def _names(self, step: Step | None) -> list[str]:
        return [work.sequence.request_id for work in step.works] if step else []


def _as_frontdesk_error(error: Exception) -> FrontdeskError:
    if isinstance(error, FrontdeskError):
        return error
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return Overloaded("the model's device ran out of memory; try again", retry_after=5.0)
    return ModelError("the model failed while it wrote this reply; the log says why")
