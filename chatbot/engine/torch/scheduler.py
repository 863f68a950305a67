"""The scheduler: which tokens the next step computes. Torch-free; the engine's step is
``schedule() -> run -> commit()``.

The fairness rule. Each step computes

1. one token for *every* running reply that is decoding, however many prompts wait, and
2. at most ``prefill_chunk_tokens`` tokens of prompts, oldest first (chunked prefill, Sarathi-Serve,
   arXiv 2403.02310).

So a long prompt slows running replies by a bounded amount per token and never stops them, and
running replies never keep a prompt from advancing: the budget of rule 2 is spent on prompts
alone. Prompts are admitted strictly in the order of arrival, with one exception: a prompt whose
next block another prompt computes in this very step waits for it and takes it from the cache.

When blocks run out the *youngest* running sequence is preempted: its blocks are released, it goes
back to its place in the queue, and its tokens are computed again later (what is still cached is
found again). The oldest sequence is never preempted, so it always ends, and so everyone does.
"""

import time
from bisect import insort
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

from chatbot.engine.interface import FinishReason
from chatbot.engine.torch.blocks import BlockManager, block_digest
from chatbot.engine.torch.sequence import Sequence
from chatbot.errors import EngineBusy, RequestRefused


@dataclass(frozen=True, slots=True)
class Work:
    """Compute keys and values of ``sequence.tokens[start:end]``; if ``samples``, choose the
    token after them."""

    sequence: Sequence
    start: int
    end: int
    samples: bool
    decodes: bool


@dataclass(frozen=True, slots=True)
class Step:
    """``works``: oldest first. ``fresh``: blocks that were handed out in this step; what they
    hold is left over from others. ``stopped``: sequences that ended because they were cancelled.
    """

    works: tuple[Work, ...]
    fresh: tuple[int, ...]
    stopped: tuple[Sequence, ...]

    @property
    def sampling(self) -> list[Work]:
        return [work for work in self.works if work.samples]


class Scheduler:
    """Waiting and running sequences over one :class:`BlockManager`. Not thread-safe."""

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_running: int,
        max_waiting: int,
        prefill_chunk_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if prefill_chunk_tokens < blocks.block_size:
            raise ValueError("prefill_chunk_tokens must be at least one block")
        self.blocks = blocks
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.prefill_chunk_tokens = prefill_chunk_tokens
        self.waiting: list[Sequence] = []  # by arrival
        self.running: list[Sequence] = []  # by arrival
        self.prefill_tokens_computed = 0
        self.prefill_tokens_cached = 0
        self.generated_tokens = 0
        self.preemptions = 0
        self._arrivals = 0
        self._clock = clock
        self._seconds_per_reply: float | None = None  # moving average of those that ended

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    # -- arrivals and ends

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            EngineBusy: as many requests as may run and wait are here already.
            RequestRefused: prompt and reply together need more blocks than there are.
        """
        needed = self.blocks.blocks_for(len(sequence.prompt) + sequence.max_tokens)
        if needed > self.blocks.total:
            raise RequestRefused(
                f"prompt and reply need {needed} cache blocks, the engine has {self.blocks.total}: "
                "shorten the prompt or raise FRONTDESK_KV_CACHE_TOKENS"
            )
        if len(self.waiting) + len(self.running) >= self.max_running + self.max_waiting:
            raise EngineBusy(
                f"{len(self.running)} replies are being written and {len(self.waiting)} wait; "
                "try again later",
                retry_after=self.retry_after(),
            )
        sequence.arrival = self._arrivals
        self._arrivals += 1
        sequence.started_at = self._clock()
        self.waiting.append(sequence)

    def retry_after(self) -> float:
        """Seconds until a place should be free: the mean time between two ends, which is the
        mean life of a reply over the number of replies alive (Little's law). Before any reply
        has ended the age of the oldest stands for its life. Between 0.1 and 60."""
        alive = self.running + self.waiting
        life = self._seconds_per_reply
        if life is None:
            now = self._clock()
            life = max((now - sequence.started_at for sequence in alive), default=1.0)
        return min(60.0, max(0.1, life / max(1, len(alive))))

    def finish(self, sequence: Sequence, reason: FinishReason | None, keep: bool = True) -> None:
        """End a sequence and release its blocks; ``keep=False`` forgets what they hold (the
        reply failed). Does nothing to one that has ended."""
        queue = self.running if sequence in self.running else self.waiting
        if sequence not in queue:
            return
        queue.remove(sequence)
        self.blocks.release(sequence.blocks, keep)
        sequence.blocks = []
        sequence.finish_reason = reason
        life = self._clock() - sequence.started_at
        average = self._seconds_per_reply
        self._seconds_per_reply = life if average is None else 0.9 * average + 0.1 * life

    # -- schedule

    def schedule(self) -> Step:
        """Choose the work of the next step and give it its blocks. A step without work means
        that nothing is left to do."""
        stopped = [item for item in [*self.running, *self.waiting] if item.cancelled]
        for sequence in stopped:
            self.finish(sequence, "stopped")
        plan = _Plan(self.prefill_chunk_tokens)
        for sequence in list(self.running):
            if sequence in self.running:  # an older one may have preempted it
                self._continue(sequence, plan)
        self._admit(plan)
        return Step(tuple(plan.works), tuple(plan.fresh), tuple(stopped))

    def _continue(self, sequence: Sequence, plan: "_Plan") -> None:
        if sequence.decoding:
            count = 1
        else:
            if self._comes_from_cache_next_step(sequence, plan):
                return
            self._adopt_prefix(sequence)
            count = plan.chunk(sequence, self.blocks.block_size)
        if count and self._make_room(sequence, count, plan):
            plan.place(sequence, count)

    def _admit(self, plan: "_Plan") -> None:
        """Start waiting sequences, oldest first, while places, blocks and budget last."""
        for sequence in list(self.waiting):
            if plan.budget == 0 or len(self.running) >= self.max_running:
                return
            if self._comes_from_cache_next_step(sequence, plan):
                continue
            if not self._fits(sequence):
                return
            self._adopt_prefix(sequence)
            count = plan.chunk(sequence, self.blocks.block_size)
            if count == 0:
                self._unadopt(sequence)
                return
            self.waiting.remove(sequence)
            insort(self.running, sequence, key=lambda item: item.arrival)
            self._reserve(sequence, count, plan)
            plan.place(sequence, count)

    def _fits(self, sequence: Sequence) -> bool:
        """Whether the whole sequence and its next token fit beside what the running ones still
        need for theirs; else admitting it would only lead to its preemption."""
        shared = self._cached_prefix(sequence)
        revived = sum(1 for block in shared if self.blocks.references(block) == 0)
        needed = self.blocks.blocks_for(len(sequence.tokens) + 1) - len(shared)
        promised = sum(
            self.blocks.blocks_for(len(item.tokens)) - len(item.blocks) for item in self.running
        )
        # nobody runs: whatever is used is nobody's, so it fits as add() has checked
        return needed <= self.blocks.available - revived - promised or not self.running

    def _make_room(self, sequence: Sequence, count: int, plan: "_Plan") -> bool:
        """Reserve blocks for ``count`` more tokens, preempting younger ones; a decoding sequence
        that is itself the youngest is preempted."""
        while not self._reserve(sequence, count, plan):
            youngest = self.running[-1]
            if youngest is sequence and not sequence.decoding:
                return False  # it keeps its blocks; older ones will end or take them
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _reserve(self, sequence: Sequence, count: int, plan: "_Plan") -> bool:
        more = self.blocks.blocks_for(sequence.computed + count) - len(sequence.blocks)
        blocks = self.blocks.allocate(more) if more > 0 else []
        if blocks is None:
            return False
        sequence.blocks += blocks
        plan.fresh += blocks
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._unadopt(sequence)
        sequence.preemptions += 1
        self.preemptions += 1
        insort(self.waiting, sequence, key=lambda item: item.arrival)

    def _unadopt(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0

    # -- prefixes

    def _shareable(self, sequence: Sequence) -> int:
        """Full blocks that may come from the cache: at least one token is left to compute,
        since its logits are needed."""
        return (len(sequence.tokens) - 1) // self.blocks.block_size

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        """Cached blocks that continue what the sequence has computed."""
        size = self.blocks.block_size
        if sequence.computed % size:
            return []
        found: list[int] = []
        for index in range(sequence.computed // size, self._shareable(sequence)):
            tokens = sequence.tokens[index * size : (index + 1) * size]
            block = self.blocks.find(sequence.parent_digest(index, size), tokens)
            if block is None:
                break
            found.append(block)
        return found

    def _adopt_prefix(self, sequence: Sequence) -> None:
        for block in self._cached_prefix(sequence):
            self.blocks.hold(block)
            sequence.blocks.append(block)
            sequence.computed += self.blocks.block_size
            if sequence.preemptions == 0:
                sequence.cached_tokens = sequence.computed

    def _comes_from_cache_next_step(self, sequence: Sequence, plan: "_Plan") -> bool:
        """Whether a sequence in the plan computes the very block that this one needs next."""
        size = self.blocks.block_size
        index = (sequence.computed // size) + len(self._cached_prefix(sequence))
        if sequence.computed % size or index >= self._shareable(sequence):
            return False
        tokens = sequence.tokens[index * size : (index + 1) * size]
        return block_digest(sequence.parent_digest(index, size), tokens) in plan.coming(size)

    # -- commit

    def commit(self, step: Step, token_ids: Items[int]) -> None:
        """Take over the result of a step: ``token_ids`` holds one chosen token for each work in
        ``step.sampling``, in order. Sequences that have ended have a ``finish_reason``; those
        that were cancelled meanwhile are left for the next step."""
        chosen = iter(token_ids)
        for work in step.works:
            self._computed(work)
            if work.samples:
                self._append(work.sequence, next(chosen))

    def _computed(self, work: Work) -> None:
        sequence, size = work.sequence, self.blocks.block_size
        if sequence not in self.running:
            return
        if not work.decodes:
            self.prefill_tokens_computed += work.end - work.start
        for index in range(work.start // size, work.end // size):
            tokens = sequence.tokens[index * size : (index + 1) * size]
            self.blocks.seal(sequence.blocks[index], sequence.parent_digest(index, size), tokens)
        sequence.computed = work.end

    def _append(self, sequence: Sequence, token: int) -> None:
        if sequence not in self.running:
            return
        if sequence.generated == 0:
            self.prefill_tokens_cached += sequence.cached_tokens
        sequence.tokens.append(token)
        self.generated_tokens += 1
        if token in sequence.end_ids:
            self.finish(sequence, "end")
        elif sequence.generated >= sequence.max_tokens:
            self.finish(sequence, "length")


class _Plan:
    """A step in the making."""

    def __init__(self, budget: int) -> None:
        self.budget = budget  # prompt tokens that may still be placed
        self.works: list[Work] = []
        self.fresh: list[int] = []
        self._coming: set[bytes] = set()
        self._counted = 0  # works whose blocks are in _coming

    def chunk(self, sequence: Sequence, block_size: int) -> int:
        """Tokens to prefill now: all that is left, or else whole blocks, so that the next chunk
        starts where a block does."""
        if sequence.remaining <= self.budget:
            return sequence.remaining
        return self.budget - self.budget % block_size

    def place(self, sequence: Sequence, count: int) -> None:
        decodes = sequence.decoding
        end = sequence.computed + count
        samples = end == len(sequence.tokens)
        self.works.append(Work(sequence, sequence.computed, end, samples, decodes))
        if not decodes:
            self.budget -= count

    def coming(self, size: int) -> set[bytes]:
        """Digests of the prompt blocks that this step completes."""
        for work in self.works[self._counted :]:
            if not work.decodes:
                for index in range(work.start // size + 1, work.end // size + 1):
                    self._coming.add(work.sequence.parent_digest(index, size))
        self._counted = len(self.works)
        return self._coming
