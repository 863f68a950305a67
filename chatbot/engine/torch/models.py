"""The forward pass, one for all supported families, on a paged KV cache.

A family differs in its parts, not in its flow, so a model is data: :class:`Decoder` holds the
layers, and the flags say what a family has. The rows of a step, decode tokens and prefill chunks
of any number of sequences, are one flat ``[rows, hidden]`` for every linear layer; only attention
looks at sequences. Query, key and value projections are one matrix, and so are gate and up.

Linear layers see few different numbers of rows (:func:`rounded`): oneDNN keeps a kernel for each
shape that came up, megabytes of them where processors multiply in tiles, and makes a new one first.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as functional

from chatbot.engine.torch.attention import (
    DecodeGroup,
    PagedCache,
    PrefillChunk,
    attend_decode,
    attend_prefill,
)

GRAIN = 8
PACKED_ROWS = 16  # of the products that packed weights are laid out for; others work, too
Norm = Callable[[torch.Tensor], torch.Tensor]  # [..., size] -> [..., size]


@dataclass(slots=True)
class Linear:
    """One matrix, made of the modules ``parts`` of the original model, each with the rows of the
    result that are its own. The index ``site`` is what LoRA deltas refer to."""

    weight: torch.Tensor  # [out, in]
    bias: torch.Tensor | None  # [out]
    parts: dict[str, slice]
    site: int = -1
    packed: torch.Tensor | None = None  # the weight as :func:`packed` lays it out

    def __call__(self, x: torch.Tensor, segments: "LoraSegments") -> torch.Tensor:
        """[rows, in] -> [rows, out], with each segment's LoRA delta added."""
        y = product(x, self.weight, self.packed, self.bias)
        for segment in segments:
            delta = segment.deltas[self.site]
            if delta is not None:
                rows = slice(segment.first, segment.last)
                _add(delta, x[rows], y[rows])
        return y


@dataclass(frozen=True, slots=True)
class LoraDelta:
    """``x @ down @ up`` is what an adapter adds to one :class:`Linear`. The parts of a fused
    matrix have their ranks side by side in ``down`` and block-diagonally in ``up``, which
    includes the scaling."""

    down: torch.Tensor  # [in, rank]
    up: torch.Tensor  # [rank, out]


@dataclass(frozen=True, slots=True)
class LoraSegment:
    """Rows ``first .. last-1`` of a step belong to one adapter; ``deltas`` by site."""

    first: int
    last: int
    deltas: tuple[LoraDelta | None, ...]


LoraSegments = tuple[LoraSegment, ...]


def _add(delta: LoraDelta, x: torch.Tensor, y: torch.Tensor) -> None:
    """To y [rows, out] what the adapter makes of x [rows, in]."""
    sum_ = with_spare_rows(y)
    sum_.addmm_(with_spare_rows(x) @ delta.down, delta.up)
    if sum_ is not y:
        y.copy_(sum_[: y.shape[0]])


@dataclass(slots=True)
class Layer:
    """One block, normalised before attention and before the MLP."""

    attention_norm: Norm
    qkv: Linear  # query, key, value
    out: Linear
    mlp_norm: Norm
    up: Linear  # gate and up, or up alone
    down: Linear
    scale: float  # of the attention scores
    q_norm: Norm | None = None  # on each head (Qwen3)
    k_norm: Norm | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of a step. Decode rows, drafts among them, come first, then the chunks in order."""

    tokens: torch.Tensor  # [rows]
    positions: torch.Tensor  # [rows]
    slots: torch.Tensor  # [rows * kv_heads] where keys and values go
    decode: DecodeGroup | None
    decode_rows: int
    chunks: tuple[PrefillChunk, ...]
    segments: LoraSegments
    sampled: torch.Tensor  # [samples] rows whose logits are wanted


@dataclass(slots=True)
class Decoder:
    """A causal language model of a supported family."""

    embedding: torch.Tensor  # [vocabulary, hidden]
    layers: list[Layer]
    final_norm: Norm
    head: torch.Tensor  # [vocabulary, hidden]
    activation: Norm
    gated: bool  # the MLP multiplies up by act(gate)
    heads: int
    kv_heads: int
    head_dim: int
    context: int  # most positions the model was made for
    position_embedding: torch.Tensor | None = None  # [context, hidden] (GPT-2)
    rope: torch.Tensor | None = None  # [2, context, head_dim]: cosines and sines
    end_ids: frozenset[int] = frozenset()
    packed_head: torch.Tensor | None = None
    merged: set[str] = field(default_factory=set)  # adapters that are part of the weights
    sites: list[Linear] = field(init=False)  # every Linear; a site is its index

    def __post_init__(self) -> None:
        self.sites = [
            linear
            for layer in self.layers
            for linear in (layer.qkv, layer.out, layer.up, layer.down)
        ]
        for index, linear in enumerate(self.sites):
            linear.site = index

    @property
    def vocabulary(self) -> int:
        return self.embedding.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    def pack(self) -> None:
        """Lay the matrices out once as the processor multiplies them, where it knows of a layout;
        else they would be for each product. They take the place of the weights in memory."""
        if not packable(self.head):
            return
        if self.packed_head is None:
            self.packed_head = packed(self.head)
            self.head = _shape_of(self.head)
        for linear in self.sites:
            linear.packed = packed(linear.weight)
            linear.weight = _shape_of(linear.weight)

    def forward(self, batch: Batch, cache: PagedCache) -> torch.Tensor:
        """Compute the rows, store their keys and values, return logits [samples, vocabulary]."""
        hidden = functional.embedding(batch.tokens, self.embedding)  # [rows, hidden]
        if self.position_embedding is not None:
            hidden = hidden + functional.embedding(batch.positions, self.position_embedding)
        hidden = with_spare_rows(hidden)
        batch = replace(batch, segments=_to_the_end(batch.segments, batch.tokens, hidden))
        turns = None if self.rope is None else self.rope[:, batch.positions, None]
        for index, layer in enumerate(self.layers):
            hidden = hidden + self._attention(index, layer, hidden, turns, batch, cache)
            hidden = hidden + self._mlp(layer, hidden, batch)
        sampled = with_spare_rows(hidden[batch.sampled])
        logits = product(self.final_norm(sampled), self.head, self.packed_head)
        return logits[: batch.sampled.shape[0]]

    def _attention(
        self,
        index: int,
        layer: Layer,
        hidden: torch.Tensor,  # [rounded rows, hidden]
        turns: torch.Tensor | None,  # [2, rows, 1, head_dim]
        batch: Batch,
        cache: PagedCache,
    ) -> torch.Tensor:
        rows = batch.tokens.shape[0]
        joined = layer.qkv(layer.attention_norm(hidden), batch.segments)[:rows]
        joined = joined.view(joined.shape[0], -1, self.head_dim)
        both = self.heads + self.kv_heads
        queries, keys, values = joined.tensor_split((self.heads, both), dim=1)
        if layer.q_norm is not None and layer.k_norm is not None:
            queries, keys = layer.q_norm(queries), layer.k_norm(keys)
            if turns is not None:
                queries, keys = rotate(queries, turns), rotate(keys, turns)
        elif turns is not None:
            queries, keys = rotate(joined[:, :both], turns).tensor_split((self.heads,), dim=1)
        cache.write(index, batch.slots, keys, values)
        if batch.decode is not None:
            decoded = slice(batch.decode_rows)
            batch.decode.memory.write(index, keys[decoded], values[decoded])
        mixed = attend(queries, batch, cache, index, layer.scale)
        return layer.out(with_spare_rows(mixed.reshape(rows, -1)), batch.segments)

    def _mlp(self, layer: Layer, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        wide = layer.up(layer.mlp_norm(hidden), batch.segments)
        if self.gated:
            gate, up = wide.chunk(2, dim=-1)
            wide = self.activation(gate) * up
        else:
            wide = self.activation(wide)
        return layer.down(wide, batch.segments)


def packable(weight: torch.Tensor) -> bool:
    """Whether oneDNN has a layout of its own for this weight on this machine."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def packed(weight: torch.Tensor) -> torch.Tensor:
    """The weight [out, in] in oneDNN's layout, opaque; products are bit for bit the same."""
    found: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_ROWS)
    return found


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    packed: torch.Tensor | None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """[rows, in] -> [rows, out]"""
    if packed is None:
        return functional.linear(x, weight, bias)
    y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return y


def _shape_of(weight: torch.Tensor) -> torch.Tensor:
    """Its shape and type, in the memory of one number."""
    return torch.zeros(1, dtype=weight.dtype).expand(weight.shape)


def rounded(rows: int, dtype: torch.dtype) -> int:
    """The number of rows that is computed for so many: powers of two, then multiples of GRAIN. One
    in bfloat16 is two: there alone, oneDNN adds its products up in another order."""
    if rows <= GRAIN:
        least = 2 if dtype == torch.bfloat16 else 1
        return max(least, 1 << (rows - 1).bit_length()) if rows else 0
    return -(-rows // GRAIN) * GRAIN


def with_spare_rows(x: torch.Tensor) -> torch.Tensor:
    """[rows, size] -> [rounded rows, size]; what is added is zero, and nobody looks at it."""
    spare = rounded(x.shape[0], x.dtype) - x.shape[0]
    return functional.pad(x, (0, 0, 0, spare)) if spare else x


def _to_the_end(segments: LoraSegments, tokens: torch.Tensor, hidden: torch.Tensor) -> LoraSegments:
    """A segment that ends with the last row goes on to the end of the spare ones."""
    if not segments or segments[-1].last != tokens.shape[0]:
        return segments
    return (*segments[:-1], replace(segments[-1], last=hidden.shape[0]))


def attend(
    queries: torch.Tensor, batch: Batch, cache: PagedCache, layer: int, scale: float
) -> torch.Tensor:
    """Attention of all rows: [rows, heads, head_dim] -> same shape."""
    parts = []
    if batch.decode is not None:
        rows = queries[: batch.decode_rows]
        parts.append(attend_decode(rows, layer, batch.decode, scale))
    for chunk in batch.chunks:
        parts.append(attend_prefill(queries[chunk.first : chunk.last], cache, layer, chunk, scale))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def rotate(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding (RoFormer, arXiv 2104.09864) in the half-split layout of the
    Llama family: x [rows, heads, head_dim], turns [2, rows, 1, head_dim] -> like x."""
    first, second = x.chunk(2, dim=-1)
    return x * turns[0] + torch.cat((-second, first), dim=-1) * turns[1]


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """Root mean square norm (arXiv 1910.07467), computed in float32."""

    weight: torch.Tensor  # [size]
    epsilon: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(x.dtype)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Layer norm (arXiv 1607.06450) with weight and bias."""

    weight: torch.Tensor  # [size]
    bias: torch.Tensor  # [size]
    epsilon: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)
