"""The scheduler: which tokens the next step computes. Torch-free; the engine's step is
``schedule() -> run -> commit()``.

The fairness rule. Each step computes

1. one token for *every* running reply that is decoding, however many prompts wait, and
2. at most ``prefill_chunk_tokens`` tokens of prompts, oldest first (chunked prefill, Sarathi-Serve,
   arXiv 2403.02310); of a prompt that needs more than one such step, beside running replies only
   as many as the step has time for (see :mod:`chatbot.engine.torch.pace`), but always a few.

So a long prompt slows running replies by a bounded amount per token and never stops them, and
running replies never keep a prompt from advancing: the budget of rule 2 is spent on prompts
alone. Prompts are admitted strictly in the order of arrival, with one exception: a prompt whose
next block another prompt computes in this very step waits for it and takes it from the cache.

When blocks run out the *youngest* running sequence is preempted: its blocks are released, it goes
back to its place in the queue, and its tokens are computed again later (what is still cached is
found again). The oldest sequence is never preempted, so it always ends, and so everyone does.

Drafts (speculative decoding) come last: when the step has its work, rows that verify drafted tokens
are added where blocks are free; nobody is preempted and no prompt waits for them. What does not
stand is given back at the commit.
"""

import time
from bisect import insort
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

from chatbot.engine.interface import FinishReason
from chatbot.engine.torch.blocks import BlockManager
from chatbot.engine.torch.draft_policy import Draft
from chatbot.engine.torch.drafts import Drafter
from chatbot.engine.torch.pace import GRAIN, PrefillPace
from chatbot.engine.torch.sequence import Sequence
from chatbot.errors import EngineBusy, RequestRefused


@dataclass(frozen=True, slots=True)
class Work:
    """Compute keys and values of ``sequence.tokens[start:end]``; if ``samples``, choose the
    token after them. With a ``draft`` compute its tokens, too, and choose a token after each for
    as long as the one before it is the one that was drafted."""

    sequence: Sequence
    start: int
    end: int
    samples: bool
    decodes: bool
    draft: Draft | None = None

    @property
    def drafted(self) -> tuple[int, ...]:
        return self.draft.tokens if self.draft else ()

    @property
    def stop(self) -> int:
        """The place after the last token that is computed, drafted ones included."""
        return self.end + len(self.drafted)

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def tokens(self) -> list[int]:
        """The tokens of the rows: [rows]."""
        return [*self.sequence.tokens[self.start : self.end], *self.drafted]

    @property
    def choices(self) -> int:
        """Rows, the last ones, whose logits are wanted."""
        return 1 + len(self.drafted) if self.samples else 0


@dataclass(frozen=True, slots=True)
class Step:
    """``works``: oldest first. ``fresh``: blocks that were handed out in this step; what they
    hold is left over from others. ``stopped``: sequences that ended because they were cancelled.
    ``copies``: (source, target) blocks. All sources are read before anything is written, and be it
    zeros: a source may be fresh, or a target, itself.
    """

    works: tuple[Work, ...]
    fresh: tuple[int, ...]
    stopped: tuple[Sequence, ...]
    copies: tuple[tuple[int, int], ...] = ()

    @property
    def sampling(self) -> list[Work]:
        return [work for work in self.works if work.samples]

    @property
    def rows(self) -> int:
        return sum(work.rows for work in self.works)

    @property
    def copied(self) -> tuple[list[int], list[int]]:
        """(sources, targets) of the copies."""
        return [source for source, _ in self.copies], [target for _, target in self.copies]


class Scheduler:
    """Waiting and running sequences over one :class:`BlockManager`. Not thread-safe.

    ``prompts_apart``: no work has tokens of a prompt and others, for runners that compute them in
    different ways. So a reply that was preempted takes a step more, and the first token of one
    has no drafts behind it.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_running: int,
        max_waiting: int,
        prefill_chunk_tokens: int,
        drafter: Drafter | None = None,
        pace: PrefillPace | None = None,
        prompts_apart: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if prefill_chunk_tokens < blocks.block_size:
            raise ValueError("prefill_chunk_tokens must be at least one block")
        self.blocks = blocks
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.prefill_chunk_tokens = prefill_chunk_tokens
        self.drafter = drafter
        self.pace = pace
        self.prompts_apart = prompts_apart
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
        self._release(sequence, keep)
        sequence.finish_reason = reason
        life = self._clock() - sequence.started_at
        average = self._seconds_per_reply
        self._seconds_per_reply = life if average is None else 0.9 * average + 0.1 * life

    def _release(self, sequence: Sequence, keep: bool) -> None:
        size = self.blocks.block_size
        index, filled = divmod(sequence.computed, size)
        if keep and filled:
            tokens = sequence.tokens[index * size : sequence.computed]
            parent = sequence.parent_digest(index, size)
            self.blocks.seal_part(sequence.blocks[index], parent, tokens)
        self.blocks.release(sequence.blocks, keep)
        sequence.blocks = []

    # -- schedule

    def schedule(self) -> Step:
        """Choose the work of the next step and give it its blocks. A step without work means
        that nothing is left to do."""
        stopped = [item for item in [*self.running, *self.waiting] if item.cancelled]
        for sequence in stopped:
            self.finish(sequence, "stopped")
        plan = _Plan(self.prefill_chunk_tokens, self._paced_budget(), self.prompts_apart)
        for sequence in list(self.running):
            if sequence in self.running:  # an older one may have preempted it
                self._continue(sequence, plan)
        self._admit(plan)
        self._add_drafts(plan)
        return Step(tuple(plan.works), tuple(plan.fresh), tuple(stopped), tuple(plan.copies))

    def _paced_budget(self) -> int:
        if self.pace is None:
            return self.prefill_chunk_tokens
        return self.pace.budget(sum(sequence.decoding for sequence in self.running))

    def _continue(self, sequence: Sequence, plan: "_Plan") -> None:
        source, copied = 0, 0
        if sequence.decoding:
            count = 1
        else:
            if self._comes_from_cache_next_step(sequence, plan):
                return
            self._adopt_prefix(sequence)
            source, copied = self._part(sequence)
            count = plan.chunk(sequence, copied, self.blocks.block_size)
        if count and self._make_room(sequence, copied + count, plan):
            self._copied(sequence, source, copied, plan)
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
            source, copied = self._part(sequence)
            count = plan.chunk(sequence, copied, self.blocks.block_size)
            if count == 0:
                self._unadopt(sequence)
                return
            self.waiting.remove(sequence)
            insort(self.running, sequence, key=lambda item: item.arrival)
            self._reserve(sequence, copied + count, plan)
            self._copied(sequence, source, copied, plan)
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
        self._release(sequence, keep=True)
        sequence.computed = 0

    # -- drafts

    def _add_drafts(self, plan: "_Plan") -> None:
        if self.drafter is None:
            return
        sequences = [
            work.sequence
            for work in plan.works
            if work.samples and (work.decodes or not self.prompts_apart)
        ]
        drafts = self.drafter.plan(sequences, sum(work.rows for work in plan.works))
        for index, work in enumerate(plan.works):
            draft = drafts.get(work.sequence) if work.samples else None
            if draft is not None:
                plan.works[index] = replace(work, draft=self._with_blocks(work, draft, plan))

    def _with_blocks(self, work: Work, draft: Draft, plan: "_Plan") -> Draft | None:
        """As much of the draft as there are blocks for."""
        sequence = work.sequence
        if self._reserve(sequence, work.end - work.start + len(draft.tokens), plan):
            return draft
        return draft.first(len(sequence.blocks) * self.blocks.block_size - work.end)

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
        before = sequence.computed
        for block in self._cached_prefix(sequence):
            self.blocks.hold(block)
            sequence.blocks.append(block)
            sequence.computed += self.blocks.block_size
        if sequence.computed > before and sequence.preemptions == 0:
            sequence.cached_tokens = sequence.computed

    def _part(self, sequence: Sequence) -> tuple[int, int]:
        """(block whose first tokens come next, how many): as a rule the turn before ended in it.
        (0, 0) if there is none."""
        index, filled = divmod(sequence.computed, self.blocks.block_size)
        first, last = sequence.computed, len(sequence.tokens) - 1  # one is left to compute
        if filled or first == last:
            return 0, 0
        parent = sequence.parent_digest(index, self.blocks.block_size)
        return self.blocks.find_part(parent, sequence.tokens[first:last]) or (0, 0)

    def _copied(self, sequence: Sequence, source: int, count: int, plan: "_Plan") -> None:
        """The next ``count`` tokens are copied from the block ``source`` before the step."""
        if not count:
            return
        target = sequence.blocks[sequence.computed // self.blocks.block_size]
        plan.fresh.remove(target)
        plan.copies.append((source, target))
        sequence.computed += count
        if sequence.preemptions == 0:
            sequence.cached_tokens = sequence.computed

    def _comes_from_cache_next_step(self, sequence: Sequence, plan: "_Plan") -> bool:
        """Whether a sequence in the plan computes the very block that this one needs next."""
        size = self.blocks.block_size
        index = (sequence.computed // size) + len(self._cached_prefix(sequence))
        if sequence.computed % size or index >= self._shareable(sequence):
            return False
        return sequence.digest(index, size) in plan.coming(size)

    # -- commit

    def commit(self, step: Step, choices: Items[Items[int]]) -> None:
        """Take over the result of a step: ``choices`` holds, for each work in ``step.sampling`` in
        order, the tokens that were chosen: those of its draft that stood, and one more. Sequences
        that have ended have a ``finish_reason``; those that were cancelled meanwhile are left for
        the next step."""
        chosen = iter(choices)
        for work in step.works:
            tokens = next(chosen) if work.samples else ()
            if work.sequence in self.running:
                self._computed(work, tokens)
                if tokens:
                    self._end(work.sequence)

    def _computed(self, work: Work, chosen: Items[int]) -> None:
        sequence, size = work.sequence, self.blocks.block_size
        if not work.decodes:
            self.prefill_tokens_computed += work.end - work.start
        if chosen and sequence.generated == 0:
            self.prefill_tokens_cached += sequence.cached_tokens
        self.generated_tokens += len(chosen)
        sequence.tokens.extend(chosen)
        stood = max(0, len(chosen) - 1)
        sequence.computed = work.end + stood
        for index in range(work.start // size, sequence.computed // size):
            tokens = sequence.tokens[index * size : (index + 1) * size]
            self.blocks.seal(sequence.blocks[index], sequence.parent_digest(index, size), tokens)
        if self.drafter is not None and work.draft is not None:
            self.drafter.verified(sequence, work.draft, stood)
            needed = self.blocks.blocks_for(sequence.computed)
            self.blocks.release(sequence.blocks[needed:])
            del sequence.blocks[needed:]

    def _end(self, sequence: Sequence) -> None:
        if sequence.tokens[-1] in sequence.end_ids:
            self.finish(sequence, "end")
        elif sequence.generated >= sequence.max_tokens:
            self.finish(sequence, "length")


class _Plan:
    """A step in the making."""

    def __init__(self, budget: int, paced: int, apart: bool) -> None:
        self._apart = apart
        self.budget = budget  # prompt tokens that may still be placed
        self._paced = paced  # of them, those of prompts that are longer than one step's
        self._longest = budget
        self.works: list[Work] = []
        self.fresh: list[int] = []
        self.copies: list[tuple[int, int]] = []
        self._coming: set[bytes] = set()
        self._counted = 0  # works whose blocks are in _coming

    def chunk(self, sequence: Sequence, copied: int, block_size: int) -> int:
        """Tokens to prefill now, after those that are copied: all that are left, or else as many
        as end where a block does, so that the next chunk starts there; smaller pieces of a long
        prompt beside replies."""
        room, grain = self.budget, block_size
        if self._is_long(sequence) and self._paced < self._longest:
            room, grain = min(room, self._paced), min(block_size, GRAIN)
        left = sequence.remaining - copied
        of_prompt = len(sequence.prompt) - sequence.computed - copied
        if self._apart and of_prompt > 0:
            left = of_prompt
        if left <= room:
            return left
        return max(0, room - (sequence.computed + copied + room) % grain)

    def _is_long(self, sequence: Sequence) -> bool:
        """The same for all of its pieces."""
        return len(sequence.prompt) - sequence.cached_tokens > self._longest

    def place(self, sequence: Sequence, count: int) -> None:
        decodes = sequence.decoding
        end = sequence.computed + count
        samples = end == len(sequence.tokens)
        self.works.append(Work(sequence, sequence.computed, end, samples, decodes))
        if not decodes:
            self.budget -= count
            if self._is_long(sequence):
                self._paced -= count

    def coming(self, size: int) -> set[bytes]:
        """Digests of the prompt blocks that this step completes."""
        for work in self.works[self._counted :]:
            if not work.decodes:
                for index in range(work.start // size, work.end // size):
                    self._coming.add(work.sequence.digest(index, size))
        self._counted = len(self.works)
        return self._coming
