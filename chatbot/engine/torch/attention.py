"""The paged KV cache and attention over it.

Attention comes in two shapes: one query token, or a few with drafts, for each of many sequences
(decode), and many query tokens of one sequence (a prefill chunk). Both first gather a sequence's
blocks into ``[kv_heads, batch, context, head_dim]``: one contiguous copy, since attention over it
is about three times faster on CPUs than over a strided cache.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as functional


class PagedCache:
    """Keys and values of all layers: two of [layers, kv_heads, blocks, block_size * head_dim].

    The memory is not touched before it is used; a block must be cleared when it is handed out,
    because what is left in it from others (even a NaN) would otherwise meet a masked weight of 0.
    """

    def __init__(
        self,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.head_dim = head_dim
        self.kv_heads = kv_heads
        shape = (layers, kv_heads, blocks, block_size * head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    @property
    def device(self) -> torch.device:
        return self.keys.device

    def renew(self, fresh: torch.Tensor, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """In every layer zero the blocks ``fresh`` [count], and copy ``sources`` [copies], as they
        were before, to ``targets`` [copies]."""
        for memory in (self.keys, self.values):
            held = memory.index_select(2, sources)
            memory.index_fill_(2, fresh, 0)
            memory.index_copy_(2, targets, held)

    def write(
        self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Store keys and values [tokens, kv_heads, head_dim] at slots [tokens] (block number *
        block_size + place in the block)."""
        flat = (self.kv_heads, -1, self.head_dim)
        self.keys[layer].view(flat).index_copy_(1, slots, keys.transpose(0, 1))
        self.values[layer].view(flat).index_copy_(1, slots, values.transpose(0, 1))

    def gather(self, layer: int, tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the sequences with block tables [batch, blocks]:
        two of [kv_heads, batch, blocks * block_size, head_dim], contiguous."""
        batch, count = tables.shape
        shape = (self.kv_heads, batch, count * self.block_size, self.head_dim)
        flat = tables.reshape(-1)
        return (
            self.keys[layer].index_select(1, flat).view(shape),
            self.values[layer].index_select(1, flat).view(shape),
        )


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """The first rows of the step: the last token of each of ``batch`` sequences, with ``queries``
    rows for each where some have drafts.

    ``mask`` is added to the scores: 0 where a row's token may look, -inf beyond it. It has a row
    for each query and each of the ``shared`` heads that use the same keys.
    """

    tables: torch.Tensor  # [batch, blocks], padded with any valid block
    mask: torch.Tensor  # [batch, 1, queries * shared, blocks * block_size], the cache's type
    # where sequences have drafts, of unequal length: the step's row for each query (padded with
    # any), and each row's place among the queries
    spread: torch.Tensor | None = None  # [batch * queries]
    places: torch.Tensor | None = None  # [decode rows]


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Rows ``first .. last-1`` of the step: consecutive tokens of one sequence that already has
    ``past`` tokens in the cache."""

    first: int
    last: int
    past: int
    table: torch.Tensor  # [1, blocks]
    mask: torch.Tensor | None  # [rows, past + rows] bool, True where seen; None: plainly causal


def attend_decode(
    queries: torch.Tensor, cache: PagedCache, layer: int, group: DecodeGroup, scale: float
) -> torch.Tensor:
    """Attention of queries [decode rows, heads, head_dim] -> same shape."""
    if group.spread is not None:
        queries = queries[group.spread]
    _, heads, head_dim = queries.shape
    keys, values = cache.gather(layer, group.tables)  # [kv_heads, batch, context, head_dim]
    kv_heads, batch, _, _ = keys.shape
    # the heads that share keys count as queries of one: [batch, kv_heads, queries * shared, size]
    grouped = queries.view(batch, -1, kv_heads, heads // kv_heads, head_dim).transpose(1, 2)
    mixed = functional.scaled_dot_product_attention(
        grouped.reshape(batch, kv_heads, -1, head_dim),
        keys.transpose(0, 1),
        values.transpose(0, 1),
        attn_mask=group.mask,
        scale=scale,
    )
    mixed = mixed.reshape(batch, kv_heads, -1, heads // kv_heads, head_dim).transpose(1, 2)
    mixed = mixed.reshape(-1, heads, head_dim)
    return mixed if group.places is None else mixed[group.places]


def attend_prefill(
    queries: torch.Tensor, cache: PagedCache, layer: int, chunk: PrefillChunk, scale: float
) -> torch.Tensor:
    """Causal attention of queries [rows, heads, head_dim] of one sequence -> same shape."""
    keys, values = cache.gather(layer, chunk.table)
    context = chunk.past + queries.shape[0]
    mixed = functional.scaled_dot_product_attention(
        queries.transpose(0, 1).unsqueeze(0),
        keys[:, :, :context].transpose(0, 1),  # [1, kv_heads, context, head_dim]
        values[:, :, :context].transpose(0, 1),
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        scale=scale,
        enable_gqa=True,
    )
    return mixed[0].transpose(0, 1)
