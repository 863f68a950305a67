"""The paged KV cache and attention over it.

Attention comes in two shapes: one query token, or a few with drafts, for each of many sequences
(decode), and many query tokens of one sequence (a prefill chunk). Both want a sequence's keys and
values in one piece: attention over it is about three times faster on CPUs than over strided blocks.

Both are the same products (:func:`_mix`) where a processor computes in bfloat16: there a query's
result has the same bits whichever queries, sequences and hidden tokens stand beside it, so that a
reply does not depend on its company, nor on the pieces in which its prompt was computed.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as functional

MOST = 16  # sequences in a portion of a decode group
WASTE = 1.25  # see :func:`portions`
PIECE = 64  # rows of a prefill chunk whose scores are held at once
SUM = 1024  # tokens that one product adds up: oneDNN adds up more in another order
GRAIN = 16  # rows of a piece are rounded up to a multiple, so that few shapes come up


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
        """Store keys and values [tokens, kv_heads, head_dim] at :meth:`slots`."""
        for memory, fresh in ((self.keys, keys), (self.values, values)):
            flat = fresh.reshape(-1, self.head_dim)
            memory[layer].view(-1, self.head_dim).index_copy_(0, slots, flat)

    def slots(self, tokens: torch.Tensor) -> torch.Tensor:
        """Where a layer has the tokens [tokens] (block number * block_size + place in the block)
        of each head: [tokens * kv_heads]."""
        total = self.keys.shape[2] * self.block_size
        return (tokens[:, None] + total * torch.arange(self.kv_heads, device=self.device)).view(-1)

    def gather(self, layer: int, tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the sequences with block tables [batch, blocks]:
        two of [batch * kv_heads, blocks * block_size, head_dim], contiguous."""
        total = self.keys.shape[2]
        heads = torch.arange(self.kv_heads, device=self.device)[:, None] * total
        flat = (tables[:, None] + heads).view(-1)  # every head's blocks in a row
        shape = (-1, tables.shape[1] * self.block_size, self.head_dim)
        keys, values = (
            memory[layer].flatten(0, 1).index_select(0, flat).view(shape)
            for memory in (self.keys, self.values)
        )
        return keys, values


class DecodeMemory(Protocol):
    """Where the keys and values of a decode group are in one piece."""

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add those of the group's rows [rows, kv_heads, head_dim]; they are in the paged cache
        already."""
        ...

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Two of [batch * kv_heads, context, head_dim], contiguous."""
        ...


@dataclass(frozen=True, slots=True)
class Gathered:
    """Gathered from their blocks in every step."""

    cache: PagedCache
    tables: torch.Tensor  # [batch, blocks], padded with any valid block

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        pass

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cache.gather(layer, self.tables)


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """The first rows of the step: the last token of each sequence, and more where it has drafts.

    All sequences have equally many queries here, and there may be more than the step has: see
    :func:`portions`. ``mask`` is added to the scores: 0 where a query may look, -inf beyond it. It
    has a row for each query and each of the ``shared`` heads that use the same keys.
    """

    memory: DecodeMemory
    mask: torch.Tensor  # [batch * kv_heads, queries * shared, context], the cache's type
    spread: torch.Tensor  # [batch * queries] the step's row for each query (padded with any)
    places: torch.Tensor  # [decode rows] each row's place among the queries
    portions: tuple[int, ...]  # of the batch, computed one after the other


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Rows ``first .. last-1`` of the step: consecutive tokens of one sequence that already has
    ``past`` tokens in the cache."""

    first: int
    last: int
    past: int
    table: torch.Tensor  # [1, blocks], padded like that of :class:`Gathered`
    # for the fused kernel: [rows, past + rows] bool, True where seen; None: plainly causal
    mask: torch.Tensor | None
    # for :func:`_mix`: of each piece [rows * shared, context], like that of a decode group; its
    # rows are rounded up to a multiple of GRAIN. Empty: the fused kernel computes the chunk.
    pieces: tuple[torch.Tensor, ...] = ()


def attend_decode(
    queries: torch.Tensor, layer: int, group: DecodeGroup, scale: float
) -> torch.Tensor:
    """Attention of queries [decode rows, heads, head_dim] -> same shape."""
    heads = queries.shape[1]
    keys, values = group.memory.read(layer)  # [batch * kv_heads, context, head_dim]
    batch = sum(group.portions)
    kv_heads = keys.shape[0] // batch
    grouped = _by_keys(queries[group.spread], batch, kv_heads)
    mixed = torch.empty_like(grouped)
    sizes = [count * kv_heads for count in group.portions]
    tensors = (group.mask, grouped, keys, values, mixed)
    parts = zip(*(torch.split(tensor, sizes) for tensor in tensors), strict=True)
    for mask, asked, seen, said, result in parts:
        _mix(mask, asked, seen, said, scale, result)
    return _by_rows(mixed, batch, heads)[group.places]


def _mix(
    mask: torch.Tensor,  # [batch, queries, context], or to be spread to it
    queries: torch.Tensor,  # [batch, queries, head_dim]
    keys: torch.Tensor,  # [batch, context, head_dim], contiguous like the values
    values: torch.Tensor,
    scale: float,
    out: torch.Tensor,  # like queries
) -> None:
    scores = torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=scale)
    weights = scores.softmax(-1)
    torch.bmm(weights[:, :, :SUM], values[:, :SUM], out=out)
    for first in range(SUM, values.shape[1], SUM):
        part = slice(first, first + SUM)
        out += torch.bmm(weights[:, :, part], values[:, part])


def _by_keys(queries: torch.Tensor, batch: int, kv_heads: int) -> torch.Tensor:
    """Queries [batch * rows, heads, head_dim] -> [batch * kv_heads, rows * shared, head_dim]: the
    heads that share keys count as queries of one."""
    _, heads, head_dim = queries.shape
    split = queries.view(batch, -1, kv_heads, heads // kv_heads, head_dim)
    return split.transpose(1, 2).reshape(batch * kv_heads, -1, head_dim)


def _by_rows(mixed: torch.Tensor, batch: int, heads: int) -> torch.Tensor:
    """The inverse of :func:`_by_keys`."""
    head_dim = mixed.shape[-1]
    kv_heads = mixed.shape[0] // batch
    split = mixed.view(batch, kv_heads, -1, heads // kv_heads, head_dim)
    return split.transpose(1, 2).reshape(-1, heads, head_dim)


def portions(sequences: int) -> tuple[int, ...]:
    """Powers of two up to MOST that add up to so many sequences or a few more. oneDNN keeps about
    a megabyte for every shape that came up, so few of them may; what is too much is computed to no
    purpose."""
    found = []
    while sequences > 0:
        size = min(1 << (sequences.bit_length() - 1), MOST)
        if size < sequences < MOST and 2 * size <= WASTE * sequences:
            size *= 2
        found.append(size)
        sequences -= size
    return tuple(found)


def attend_prefill(
    queries: torch.Tensor, cache: PagedCache, layer: int, chunk: PrefillChunk, scale: float
) -> torch.Tensor:
    """Causal attention of queries [rows, heads, head_dim] of one sequence -> same shape."""
    keys, values = cache.gather(layer, chunk.table)  # [kv_heads, context, head_dim]
    if chunk.pieces:
        return _attend_in_pieces(queries, keys, values, chunk.pieces, scale)
    context = chunk.past + queries.shape[0]
    mixed = functional.scaled_dot_product_attention(
        queries.transpose(0, 1).unsqueeze(0),
        keys[:, :context].unsqueeze(0),  # [1, kv_heads, context, head_dim]
        values[:, :context].unsqueeze(0),
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        scale=scale,
        enable_gqa=True,
    )
    return mixed[0].transpose(0, 1)


def _attend_in_pieces(
    queries: torch.Tensor,  # [rows, heads, head_dim]
    keys: torch.Tensor,  # [kv_heads, context, head_dim]
    values: torch.Tensor,
    masks: tuple[torch.Tensor, ...],
    scale: float,
) -> torch.Tensor:
    rows, heads, _ = queries.shape
    kv_heads = keys.shape[0]
    queries = functional.pad(queries, (0, 0, 0, 0, 0, -rows % GRAIN))
    mixed = torch.empty_like(queries)
    asked, results = torch.split(queries, PIECE), torch.split(mixed, PIECE)
    for part, mask, result in zip(asked, masks, results, strict=True):
        grouped = _by_keys(part, 1, kv_heads)
        said = torch.empty_like(grouped)
        _mix(mask, grouped, keys, values, scale, said)
        result.copy_(_by_rows(said, 1, heads))
    return mixed[:rows]
