"""The rows of one inference, as the graph takes them.

In bfloat16 the plugin's sums depend on how rows come to it, in two ways. A matrix product of one
row adds up in another order than one of more. And PagedAttention has one kernel for a sequence with
a single row and another for a sequence with several. So that a reply has the same bits whatever
company it has, be its prompt found in the cache or not, and be its tokens drafted or not:

- there are always at least two rows, and two whose logits are computed;
- tokens of a prompt are never single rows: one that is left alone gets another one behind it;
- tokens of a reply are single rows, a draft's among them: each is a sequence of its own to the
  operator, which stores all keys and values of an inference before it looks at any. That is also
  faster where many replies are drafted. It does not go with a quantized cache, whose blocks are
  written as a whole, nor with rows of the prompt in the same inference, because the operator clears
  what is behind several rows in their last block.
"""

import itertools
from collections.abc import Iterable
from collections.abc import Sequence as Items

import numpy as np
import openvino as ov

from chatbot.engine.openvino.graph import BLOCK_SIZE
from chatbot.engine.torch.adapters import LoraAdapter
from chatbot.engine.torch.scheduler import Work

NOTHING = 0  # the token of rows that are computed to no purpose


class Rows:
    """``spare`` is a block that nobody is given: what is computed to no purpose is stored there,
    or behind a sequence's last token, where the next one will be."""

    def __init__(self, spare: int) -> None:
        self._spare = spare
        self._tokens: list[int] = []
        self._spans: list[tuple[Items[int], int, int]] = []  # blocks, first place, place after it
        self.owners: list[tuple[LoraAdapter, int, int]] = []  # adapter, first row, row after it
        self.sampled: list[int] = []  # rows whose logits are wanted

    @classmethod
    def of(
        cls, works: Iterable[Work], spare: int, single: bool = True, every: bool = False
    ) -> "Rows":
        """Of works that have no tokens of a prompt and others. ``single``: tokens of replies are
        single rows. ``every``: the logits of every row are wanted."""
        rows = cls(spare)
        for work in works:
            rows._add_work(work, single, every)
        if rows.count < 2:
            rows.add((spare,), 0, [NOTHING] * (2 - rows.count))
        return rows

    @property
    def count(self) -> int:
        return len(self._tokens)

    def add(self, blocks: Items[int], start: int, tokens: Items[int]) -> None:
        """Tokens at the places ``start`` and following of a sequence in those blocks."""
        self._tokens += tokens
        self._spans.append((blocks, start, start + len(tokens)))

    def _add_work(self, work: Work, single: bool, every: bool) -> None:
        sequence, first = work.sequence, self.count
        if work.start >= len(sequence.prompt) and single:
            for place, token in enumerate(work.tokens, work.start):
                self.add(sequence.blocks, place, [token])
        elif work.rows == 1:
            blocks = [*sequence.blocks[: -(-work.stop // BLOCK_SIZE)], self._spare]
            self.add(blocks, work.start, [*work.tokens, NOTHING])
        else:
            self.add(sequence.blocks, work.start, work.tokens)
        if sequence.adapter is not None:
            self.owners.append((sequence.adapter, first, self.count))
        wanted = work.rows if every else work.choices
        self.sampled += range(first + work.rows - wanted, first + work.rows)

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
