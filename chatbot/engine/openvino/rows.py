"""The rows of one inference, as the graph takes them.

In bfloat16 the plugin's sums depend on how rows come to it. A matrix product of one row adds up in
another order than one of more. PagedAttention has one kernel for a sequence with a single row and
another for a sequence with several; and for fewer sequences than threads, all of single rows, a
third one, whose threads add up what they happen to get (openvino's executor_pa.cpp). So that a
reply has the same bits whatever company it has, be its prompt found in the cache or not, and be its
tokens drafted or not:

- there are always at least two rows, and two whose logits are computed;
- where there are fewer sequences than threads, one has several rows;
- tokens of a prompt are never single rows: one that is left alone gets another one behind it;
- tokens of a reply are single rows, a draft's among them: each is a sequence of its own to the
  operator, which stores all keys and values of an inference before it looks at any. It does not go
  with rows of the prompt in the same inference, because the operator clears what is behind several
  rows in their last block.

A quantized cache writes blocks as a whole, so none of this is for it: its rows are as they come.
"""

import itertools
from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import openvino as ov

from chatbot.engine.openvino.graph import BLOCK_SIZE
from chatbot.engine.torch.adapters import LoraAdapter
from chatbot.engine.torch.scheduler import Work

NOTHING = 0  # the token of rows that are computed to no purpose


@dataclass(frozen=True, slots=True)
class Layout:
    """What rows depend on: ``spare`` is a block that nobody is given, for what is computed to no
    purpose; ``threads`` are the plugin's; ``steady``: bits do not depend on company, as above."""

    spare: int
    threads: int
    steady: bool


class Rows:
    """Of works that have no tokens of a prompt and others. ``every``: the logits of every row are
    wanted."""

    def __init__(self, works: Iterable[Work], layout: Layout, every: bool = False) -> None:
        self._layout = layout
        self._tokens: list[int] = []
        self._spans: list[tuple[Items[int], int, int]] = []  # blocks, first place, place after it
        self.owners: list[tuple[LoraAdapter, int, int]] = []  # adapter, first row, row after it
        self.sampled: list[int] = []  # rows whose logits are wanted
        for work in works:
            self._add_work(work, every)
        self._add_spare()

    @property
    def count(self) -> int:
        return len(self._tokens)

    def _add(self, blocks: Items[int], start: int, tokens: Items[int]) -> None:
        """Tokens at the places ``start`` and following of a sequence in those blocks."""
        self._tokens += tokens
        self._spans.append((blocks, start, start + len(tokens)))

    def _add_work(self, work: Work, every: bool) -> None:
        sequence, first = work.sequence, self.count
        steady = self._layout.steady
        if steady and work.start >= len(sequence.prompt):
            for place, token in enumerate(work.tokens, work.start):
                self._add(sequence.blocks, place, [token])
        elif steady and work.rows == 1:
            blocks = [*sequence.blocks[: -(-work.stop // BLOCK_SIZE)], self._layout.spare]
            self._add(blocks, work.start, [*work.tokens, NOTHING])
        else:
            self._add(sequence.blocks, work.start, work.tokens)
        if sequence.adapter is not None:
            self.owners.append((sequence.adapter, first, self.count))
        wanted = work.rows if every else work.choices
        self.sampled += range(first + work.rows - wanted, first + work.rows)

    def _add_spare(self) -> None:
        """A sequence more, where the kernels would be others without it."""
        missing, steady = self._layout.threads - len(self._spans), self._layout.steady
        if steady and missing > 0 and all(end - start == 1 for _, start, end in self._spans):
            self._add((self._layout.spare,), 0, [NOTHING] * min(missing, 2))
        least = 2 if steady else 1  # the warm-up has no works
        if self.count < least:
            self._add((self._layout.spare,), 0, [NOTHING] * (least - self.count))

    def inputs(self) -> dict[str, ov.Tensor]:
        """The graph's inputs but for caches and adapters."""
        spans = self._spans
        tables = [blocks[: -(-end // BLOCK_SIZE)] for blocks, _, end in spans]
        begins = itertools.accumulate((end - start for _, start, end in spans), initial=0)
        # one whose logits nobody asked for where none or one is wanted
        sampled = self.sampled + [0] * (2 - len(self.sampled))
        values: dict[str, list[int] | int] = {
            "tokens": self._tokens,
            "positions": [place for _, start, end in spans for place in range(start, end)],
            "past_lens": [start for _, start, _ in spans],
            "subsequence_begins": list(begins),
            "block_indices": [block for table in tables for block in table],
            "block_indices_begins": [0, *itertools.accumulate(map(len, tables))],
            "max_context_len": max(end for _, _, end in spans),
            "sampled": sampled,
        }
        return {name: ov.Tensor(np.array(value, np.int32)) for name, value in values.items()}
