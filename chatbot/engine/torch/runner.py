"""The runner: one step of the scheduler, as tensors. It knows no conversations and no text."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Protocol, TypeVar

import torch

from chatbot.engine.torch.attention import DecodeGroup, PagedCache, PrefillChunk
from chatbot.engine.torch.models import Batch, Decoder, LoraSegment, LoraSegments
from chatbot.engine.torch.sampling import Choice, choose_tokens, rows_of, verify
from chatbot.engine.torch.scheduler import Step, Work
from chatbot.engine.torch.sequence import Sequence

Model = TypeVar("Model")


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
        self.cache = PagedCache(
            layers=len(decoder.layers),
            kv_heads=decoder.kv_heads,
            head_dim=decoder.head_dim,
            blocks=blocks,
            block_size=block_size,
            dtype=decoder.dtype,
            device=decoder.device,
        )

    @torch.inference_mode()
    def run(self, step: Step) -> list[Choice]:
        if step.fresh or step.copies:
            sources, targets = step.copied
            self.cache.renew(*map(self._tensor, (list(step.fresh), sources, targets)))
        found: dict[Sequence, Choice] = {}
        for decoder, group in by_weights(step.works, self._merged, self.decoder):
            works = _in_rows(group)
            batch = self.build(works)
            if decoder is not self.decoder:
                batch = replace(batch, segments=())  # the adapter is in the weights
            logits = decoder.forward(batch, self.cache)
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

    def build(self, works: list[Work]) -> Batch:
        """The batch of works that :func:`_in_rows` has ordered."""
        group = [work for work in works if _grouped(work)]
        tokens = [t for work in works for t in work.tokens]
        positions = [p for work in works for p in range(work.start, work.stop)]
        ends = list(itertools.accumulate(work.rows for work in works))
        longer = list(zip(works, ends, strict=True))[len(group) :]
        wanted = (range(end - work.choices, end) for work, end in zip(works, ends, strict=True))
        return Batch(
            tokens=self._tensor(tokens),
            positions=self._tensor(positions),
            slots=self._tensor(self._slots(works)),
            decode=self._decode_group(group) if group else None,
            decode_rows=sum(work.rows for work in group),
            chunks=tuple(self._chunk(work, last) for work, last in longer),
            segments=_segments(works, ends),
            sampled=self._tensor(list(itertools.chain.from_iterable(wanted))),
        )

    def _slots(self, works: list[Work]) -> list[int]:
        size = self.cache.block_size
        return [
            work.sequence.blocks[place // size] * size + place % size
            for work in works
            for place in range(work.start, work.stop)
        ]

    def _decode_group(self, works: list[Work]) -> DecodeGroup:
        size, device = self.cache.block_size, self.cache.device
        count = max(-(-work.stop // size) for work in works)
        queries = max(work.rows for work in works)
        tables = []
        for work in works:
            table = work.sequence.blocks[: -(-work.stop // size)]
            # padded with a block of its own: the mask hides it, and what is there is finite
            tables.append(table + [table[0]] * (count - len(table)))
        # a query sees what is before it and itself; those that only pad see no more than the last
        seen = [[min(work.start + q + 1, work.stop) for q in range(queries)] for work in works]
        beyond = torch.arange(count * size, device=device) >= self._tensor(seen)[:, :, None]
        mask = torch.zeros(beyond.shape, dtype=self.decoder.dtype, device=device)
        mask = mask.masked_fill_(beyond, -torch.inf)[:, None]
        shared = self.decoder.heads // self.decoder.kv_heads
        group = DecodeGroup(self._tensor(tables), mask.repeat_interleave(shared, dim=2))
        if queries == 1:
            return group
        firsts = [0, *itertools.accumulate(work.rows for work in works)]
        pairs = list(zip(works, firsts, strict=False))
        spread = [first + min(q, work.rows - 1) for work, first in pairs for q in range(queries)]
        places = [n * queries + q for n, work in enumerate(works) for q in range(work.rows)]
        return replace(group, spread=self._tensor(spread), places=self._tensor(places))

    def _chunk(self, work: Work, last: int) -> PrefillChunk:
        table = work.sequence.blocks[: -(-work.stop // self.cache.block_size)]
        mask = None
        if work.start:
            mask = torch.ones(work.rows, work.stop, dtype=torch.bool, device=self.cache.device)
            mask = mask.tril_(diagonal=work.start)
        return PrefillChunk(last - work.rows, last, work.start, self._tensor([table]), mask)

    def _tensor(self, values: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.cache.device)


def by_weights(
    works: Iterable[Work], merged: Mapping[str, Model], base: Model
) -> list[tuple[Model, list[Work]]]:
    """The works of each model that a step needs: those whose adapter, by uid, has one in
    ``merged``, and all others together."""
    groups: dict[str, list[Work]] = {}
    for work in works:
        adapter = work.sequence.adapter
        uid = adapter.uid if adapter is not None and adapter.uid in merged else ""
        groups.setdefault(uid, []).append(work)
    return [(merged.get(uid, base), group) for uid, group in groups.items()]


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
