"""The runner: one step of the scheduler, as tensors. It knows no conversations and no text."""

import itertools
from collections.abc import Container, Iterable
from dataclasses import replace
from typing import Protocol

import structlog
import torch

from chatbot.engine.torch.attention import (
    GRAIN,
    PIECE,
    DecodeGroup,
    DecodeMemory,
    Gathered,
    PagedCache,
    PrefillChunk,
    portions,
)
from chatbot.engine.torch.dense import Dense, DenseCache, room_for
from chatbot.engine.torch.models import Batch, Decoder, LoraSegment, LoraSegments
from chatbot.engine.torch.sampling import Choice, choose_tokens, rows_of, verify
from chatbot.engine.torch.scheduler import Step, Work
from chatbot.engine.torch.sequence import Sequence

log = structlog.get_logger(__name__)
QUERIES = 3  # more than one are rounded up to a multiple: see attention.portions


class Runner(Protocol):
    """What the engine's loop needs of a runner."""

    def run(self, step: Step) -> list[Choice]:
        """Compute the step; one choice for each of ``step.sampling``."""
        ...


class TorchRunner:
    """Runs steps on a decoder and its paged cache. Rows whose adapter was merged are computed by a
    decoder of their own, on the same cache."""

    def __init__(self, decoder: Decoder, blocks: int, block_size: int) -> None:
        self.decoder = decoder
        self._merged: dict[str, Decoder] = {}  # adapter's uid -> decoder
        self._dense: dict[str, DenseCache] = {}  # of the last step's groups, by the same
        self._tokens = blocks * block_size
        self.cache = PagedCache(
            layers=len(decoder.layers),
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            blocks=blocks,
            block_size=block_size,
            dtype=decoder.dtype,
            device=decoder.device,
        )
        # where products of prompts' attention are no slower than the fused kernel, and give the
        # same bits in any company
        self._steady = decoder.device.type == "cpu" and decoder.dtype == torch.bfloat16

    @torch.inference_mode()
    def run(self, step: Step) -> list[Choice]:
        if step.fresh or step.copies:
            sources, targets = step.copied
            self.cache.renew(*map(self._tensor, (list(step.fresh), sources, targets)))
        found: dict[Sequence, Choice] = {}
        groups = by_weights(step.works, self._merged)
        for uid in list(self._dense):  # whoever is not in this step has no place in the next either
            if not any(_grouped(work) for work in groups.get(uid, ())):
                del self._dense[uid]
        for uid, group in groups.items():
            works = _in_rows(group)
            batch = self.build(works, uid)
            if uid:
                batch = replace(batch, segments=())  # the adapter is in the weights
            logits = self._merged.get(uid, self.decoder).forward(batch, self.cache)
            rows = rows_of(works)
            if rows:
                choices = verify(works, *choose_tokens(logits, rows))
                sampled = (work.sequence for work in works if work.samples)
                found |= zip(sampled, choices, strict=True)
        return [found[work.sequence] for work in step.sampling]

    def merge(self, uid: str, model: Decoder) -> None:
        """See :class:`chatbot.engine.torch.merging.MergingRunner`."""
        self._merged[uid] = model

    def unmerge(self, uid: str) -> None:
        """See :class:`chatbot.engine.torch.merging.MergingRunner`."""
        self._merged.pop(uid, None)

    def build(self, works: list[Work], uid: str = "") -> Batch:
        """The batch of works that :func:`_in_rows` has ordered, computed with the weights of
        ``uid``."""
        group = [work for work in works if _grouped(work)]
        tokens = [t for work in works for t in work.tokens]
        positions = [p for work in works for p in range(work.start, work.stop)]
        ends = list(itertools.accumulate(work.rows for work in works))
        longer = list(zip(works, ends, strict=True))[len(group) :]
        wanted = (range(end - work.choices, end) for work, end in zip(works, ends, strict=True))
        return Batch(
            tokens=self._tensor(tokens),
            positions=self._tensor(positions),
            slots=self.cache.slots(self._tensor(self._tokens_of(works))),
            decode=self._decode_group(group, uid) if group else None,
            decode_rows=sum(work.rows for work in group),
            chunks=tuple(self._chunk(work, last) for work, last in longer),
            segments=_segments(works, ends),
            sampled=self._tensor(list(itertools.chain.from_iterable(wanted))),
        )

    def _tokens_of(self, works: list[Work]) -> list[int]:
        size = self.cache.block_size
        return [
            work.sequence.blocks[place // size] * size + place % size
            for work in works
            for place in range(work.start, work.stop)
        ]

    def _decode_group(self, works: list[Work], uid: str) -> DecodeGroup:
        parts = portions(len(works))
        batch = sum(parts)
        queries = max(work.rows for work in works)
        queries = queries if queries == 1 else -(-queries // QUERIES) * QUERIES
        memory, places, context = self._memory(works, uid, batch)
        firsts = itertools.accumulate((work.rows for work in works), initial=0)
        # a place that nobody has, and a query that only pads, see something, be it to no purpose
        spread, seen = [0] * (batch * queries), [1] * (batch * queries)
        found: list[int] = []
        for work, first, place in zip(works, firsts, places, strict=False):
            at = place * queries
            last = first + work.rows - 1
            spread[at : at + queries] = [min(first + q, last) for q in range(queries)]
            seen[at : at + queries] = [min(work.start + q + 1, work.stop) for q in range(queries)]
            found += range(at, at + work.rows)
        return DecodeGroup(
            memory=memory,
            mask=self._mask(self._tensor(seen).view(batch, queries), context),
            spread=self._tensor(spread),
            places=self._tensor(found),
            portions=parts,
        )

    def _memory(
        self, works: list[Work], uid: str, batch: int
    ) -> tuple[DecodeMemory, list[int], int]:
        """Where the works' keys and values are in one piece, the place of each, and the tokens
        that a place has."""
        if self.cache.device.type == "cpu":  # elsewhere memory is dearer, and gathering is not
            dense = self._dense.pop(uid, None) or self._new_dense()
            places = dense.hold(works, batch)
            if places is not None:
                self._dense[uid] = dense
                return Dense(dense, batch, dense.slots(works, places)), places, dense.room
        tables, context = self._tables(works)
        tables += tables[:1] * (batch - len(tables))
        gathered = Gathered(self.cache, self._tensor(tables))
        return gathered, list(range(len(works))), context

    def _tables(self, works: list[Work]) -> tuple[list[list[int]], int]:
        """Block tables of one length, and the tokens that they have room for."""
        size = self.cache.block_size
        count = -(-room_for(max(work.stop for work in works)) // size)
        tables = [work.sequence.blocks[: -(-work.stop // size)] for work in works]
        # padded with a block of its own: the mask hides it, and what is there is finite
        return [table + table[:1] * (count - len(table)) for table in tables], count * size

    def _new_dense(self) -> DenseCache:
        try:
            return DenseCache(self.cache, self._tokens)
        except RuntimeError as error:  # a system that promises no more memory than it has
            log.warning("running replies are gathered in every step", reason=str(error))
            self._tokens = 0
            return DenseCache(self.cache, 0)

    def _mask(self, seen: torch.Tensor, context: int) -> torch.Tensor:
        """What is added to the scores of queries that see ``seen`` [batch, queries] tokens."""
        mask = self._added(seen, context)[:, None]
        return mask.expand(-1, self.decoder.kv_heads, -1, -1).flatten(0, 1)

    def _added(self, seen: torch.Tensor, context: int) -> torch.Tensor:
        """[batch, queries * shared, context]"""
        beyond = torch.arange(context, device=seen.device) >= seen[:, :, None]
        mask = torch.zeros(beyond.shape, dtype=self.decoder.dtype, device=seen.device)
        mask = mask.masked_fill_(beyond, -torch.inf)
        return mask.repeat_interleave(self.decoder.heads // self.decoder.kv_heads, dim=1)

    def _chunk(self, work: Work, last: int) -> PrefillChunk:
        tables, context = self._tables([work])
        mask: torch.Tensor | None = None
        pieces: tuple[torch.Tensor, ...] = ()
        if self._steady:
            rows = work.rows + -work.rows % GRAIN
            seen = self._tensor([min(work.start + row + 1, work.stop) for row in range(rows)])
            parts = torch.split(seen, PIECE)
            pieces = tuple(self._added(part[None], context)[0] for part in parts)
        elif work.start:
            mask = torch.ones(work.rows, work.stop, dtype=torch.bool, device=self.cache.device)
            mask = mask.tril_(diagonal=work.start)
        first = last - work.rows
        return PrefillChunk(first, last, work.start, self._tensor(tables), mask, pieces)

    def _tensor(self, values: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.cache.device)


def by_weights(works: Iterable[Work], merged: Container[str]) -> dict[str, list[Work]]:
    """The works of each model that a step needs: those whose adapter has one, by its uid, and all
    others together, by ""."""
    groups: dict[str, list[Work]] = {}
    for work in works:
        adapter = work.sequence.adapter
        uid = adapter.uid if adapter is not None and adapter.uid in merged else ""
        groups.setdefault(uid, []).append(work)
    return groups


def _grouped(work: Work) -> bool:
    """Whether the rows go into the decode group: few of them, each its sequence's last ones."""
    return work.decodes or work.rows == 1


def _in_rows(works: Iterable[Work]) -> list[Work]:
    """The decode group first, then chunks; in both those of one adapter side by side."""

    def key(work: Work) -> tuple[bool, str]:
        adapter = work.sequence.adapter
        return not _grouped(work), adapter.uid if adapter else ""

    return sorted(works, key=key)


def _segments(works: list[Work], ends: list[int]) -> LoraSegments:
    """Runs of rows with the same adapter; rows without one are in no segment."""
    segments = []
    first = 0
    pairs = zip(works, ends, strict=True)
    for adapter, run in itertools.groupby(pairs, key=lambda pair: pair[0].sequence.adapter):
        last = [end for _, end in run][-1]
        if adapter is not None:
            segments.append(LoraSegment(first, last, adapter.deltas))
        first = last
    return tuple(segments)
