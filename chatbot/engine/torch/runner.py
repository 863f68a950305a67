"""The runner: one step of the scheduler, as tensors. It knows no conversations and no text."""

import itertools
from typing import Protocol

import torch

from chatbot.engine.torch.attention import DecodeGroup, PagedCache, PrefillChunk
from chatbot.engine.torch.models import Batch, Decoder, LoraSegment, LoraSegments
from chatbot.engine.torch.sampling import TokenChooser, choose_tokens
from chatbot.engine.torch.scheduler import Step, Work


class Runner(Protocol):
    """What the engine's loop needs of a runner."""

    def run(self, step: Step) -> tuple[list[int], list[float]]:
        """Compute the step; one token and its probability for each of ``step.sampling``."""
        ...


class TorchRunner:
    """Runs steps on a decoder and its paged cache."""

    def __init__(self, decoder: Decoder, blocks: int, block_size: int) -> None:
        self.decoder = decoder
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
    def run(self, step: Step) -> tuple[list[int], list[float]]:
        if step.fresh:
            self.cache.clear(self._tensor(list(step.fresh)))
        works = _in_rows(step.works)
        logits = self.decoder.forward(self.build(works), self.cache)
        choosers = [_chooser(work) for work in works if work.samples]
        if not choosers:
            return [], []
        tokens, probabilities = choose_tokens(logits, choosers)
        for chooser, token, probability in zip(choosers, tokens, probabilities, strict=True):
            chooser.record(token, probability)
        return self._in_step_order(step, works, tokens, probabilities)

    def _in_step_order(
        self, step: Step, works: list[Work], tokens: list[int], probabilities: list[float]
    ) -> tuple[list[int], list[float]]:
        sampled = (work for work in works if work.samples)
        place = {work.sequence: index for index, work in enumerate(sampled)}
        order = [place[work.sequence] for work in step.sampling]
        return [tokens[index] for index in order], [probabilities[index] for index in order]

    def build(self, works: list[Work]) -> Batch:
        """The batch of works that :func:`_in_rows` has ordered."""
        singles = [work for work in works if work.end - work.start == 1]
        longer = works[len(singles) :]
        tokens = [t for work in works for t in work.sequence.tokens[work.start : work.end]]
        positions = [p for work in works for p in range(work.start, work.end)]
        ends = list(itertools.accumulate(work.end - work.start for work in works))
        chunks = tuple(
            self._chunk(work, last) for work, last in zip(longer, ends[len(singles) :], strict=True)
        )
        return Batch(
            tokens=self._tensor(tokens),
            positions=self._tensor(positions),
            slots=self._tensor(self._slots(works)),
            decode=self._decode_group(singles) if singles else None,
            decode_rows=len(singles),
            chunks=chunks,
            segments=_segments(works, ends),
            sampled=self._tensor(
                [last - 1 for work, last in zip(works, ends, strict=True) if work.samples]
            ),
        )

    def _slots(self, works: list[Work]) -> list[int]:
        size = self.cache.block_size
        return [
            work.sequence.blocks[place // size] * size + place % size
            for work in works
            for place in range(work.start, work.end)
        ]

    def _decode_group(self, works: list[Work]) -> DecodeGroup:
        size = self.cache.block_size
        count = max(-(-work.end // size) for work in works)
        rows = []
        for work in works:
            table = work.sequence.blocks[: -(-work.end // size)]
            # padded with a block of its own: the mask hides it, and what is there is finite
            rows.append(table + [table[0]] * (count - len(table)))
        places = torch.arange(count * size, device=self.cache.device)
        beyond = places >= self._tensor([work.end for work in works])[:, None]
        mask = torch.zeros(beyond.shape, device=self.cache.device).masked_fill_(beyond, -torch.inf)
        return DecodeGroup(self._tensor(rows), mask[:, None])

    def _chunk(self, work: Work, last: int) -> PrefillChunk:
        rows, past = work.end - work.start, work.start
        table = work.sequence.blocks[: -(-work.end // self.cache.block_size)]
        mask = None
        if past:
            mask = torch.ones(rows, work.end, dtype=torch.bool, device=self.cache.device)
            mask = mask.tril_(diagonal=past)
        return PrefillChunk(last - rows, last, past, self._tensor([table]), mask)

    def _tensor(self, values: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.cache.device)


def _in_rows(works: tuple[Work, ...]) -> list[Work]:
    """Single tokens first, then chunks; in both those of one adapter side by side."""

    def key(work: Work) -> tuple[bool, str]:
        adapter = work.sequence.adapter
        return work.end - work.start > 1, adapter.uid if adapter else ""

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


def _chooser(work: Work) -> TokenChooser:
    chooser = work.sequence.chooser
    if chooser is None:
        raise ValueError(f"sequence {work.sequence.request_id} has no token chooser")
    return chooser
