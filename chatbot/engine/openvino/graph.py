"""The forward pass as an OpenVINO graph, one for all families, on a paged KV cache.

The graph is :meth:`chatbot.engine.torch.models.Decoder.forward` written in OpenVINO's operators:
the rows of a step, decode tokens and prefill chunks of any number of sequences, are one flat
``[rows, hidden]``, and the plugin's PagedAttention operator alone looks at sequences. Weights are
uint8 with a scale and a zero point for each output channel, or the same numbers in bfloat16;
activations float.

LoRA (arXiv 2106.09685) is part of the graph. Each matrix has two inputs, ``down [in, ranks]`` and
``up [ranks, out]``, in which the adapters of the step stand side by side, and a mask
``[rows, ranks]`` that shows a row the ranks of its own adapter alone. So adapters come and go
as input tensors: nothing is compiled again, and any number of them share one step. A graph without
these inputs is for weights that have an adapter in them already.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as ops
from openvino.op import _PagedAttentionExtension

BLOCK_SIZE = 32  # the only one that OpenVINO's CPU plugin knows
Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Shape:
    """What the graph needs to know beside the weights."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    activation: str  # "silu", "gelu" or "gelu_tanh"
    gated: bool
    rms: bool  # RMS norm, else layer norm
    epsilon: float
    scale: float
    qk_norm: bool


SITES = ("qkv", "out", "up", "down")  # the matrices of a layer, in the order of their sites


def build_graph(shape: Shape, weights: Weights, lora_type: Any, wide: bool) -> ov.Model:
    """The model whose inputs are those of a step (see :mod:`chatbot.engine.openvino.runner`).
    ``lora_type``: element type of the LoRA inputs; None: there are none. ``wide``: weights in
    bfloat16."""
    return _Builder(shape, weights, lora_type, wide).build()


class _Builder:
    def __init__(self, shape: Shape, weights: Weights, lora_type: Any, wide: bool) -> None:
        self.shape = shape
        self.weights = weights
        self.lora_type = lora_type
        self.wide = wide
        self.parameters: list[Any] = []

    # -- inputs and constants

    def input(self, name: str, dims: list[int] | None, kind: Any) -> Any:
        node = ops.parameter(
            ov.PartialShape.dynamic() if dims is None else ov.PartialShape(dims), kind, name
        )
        node.output(0).set_names({name})
        self.parameters.append(node)
        return node

    def matrix(self, name: str) -> Any:
        """The dequantized weight [out, in]; the plugin keeps it as uint8, or as bfloat16."""
        if self.wide:
            return ops.convert(self.widened(name), np.float32)
        codes = ops.constant(self.weights[f"{name}.codes"], shared_memory=True)
        zero = ops.constant(self.weights[f"{name}.zero"], shared_memory=True)
        scale = ops.constant(self.weights[f"{name}.scale"], shared_memory=True)
        centred = ops.subtract(ops.convert(codes, np.float32), ops.convert(zero, np.float32))
        return ops.multiply(centred, scale)

    def widened(self, name: str) -> Any:
        codes, zero, scale = (self.weights[f"{name}.{part}"] for part in ("codes", "zero", "scale"))
        exact = (codes.astype(np.float32) - zero.astype(np.float32)) * scale
        memory = ov.Tensor(ov.Type.bf16, ov.Shape(codes.shape))
        rounded = torch.from_numpy(exact).to(torch.bfloat16)
        memory.data.view(np.uint16)[...] = rounded.view(torch.uint16).numpy()
        return ov.op.Constant(memory, shared_memory=True)

    def vector(self, name: str) -> Any:
        return ops.constant(self.weights[name], shared_memory=True)

    # -- parts

    def linear(self, x: Any, name: str, site: int, mask: Any) -> Any:
        y = ops.matmul(x, self.matrix(name), False, True)
        if f"{name}.bias" in self.weights:
            y = ops.add(y, self.vector(f"{name}.bias"))
        if self.lora_type is None:
            return y
        out, size = self.weights[f"{name}.codes"].shape
        down = self.input(f"lora_down.{site}", [size, -1], self.lora_type)
        up = self.input(f"lora_up.{site}", [-1, out], self.lora_type)
        low = ops.matmul(x, self.float(down), False, False)
        # chosen, not multiplied by 0: an adapter whose numbers overflow would reach other rows
        low = ops.select(mask, low, np.float32(0))
        return ops.add(y, ops.matmul(low, self.float(up), False, False))

    def mask(self, site: str) -> Any:
        if self.lora_type is None:
            return None
        return self.input(f"lora_mask.{site}", [-1, -1], ov.Type.boolean)

    def float(self, x: Any) -> Any:
        return x if self.lora_type == ov.Type.f32 else ops.convert(x, np.float32)

    def norm(self, x: Any, name: str) -> Any:
        if not self.shape.rms:
            normal = ops.mvn(x, np.array([-1]), True, self.shape.epsilon, "inside_sqrt")
            scaled = ops.multiply(normal, self.vector(f"{name}.weight"))
            return ops.add(scaled, self.vector(f"{name}.bias"))
        square = ops.power(x, np.float32(2))
        mean = ops.reduce_mean(square, np.array([-1]), keep_dims=True)
        root = ops.sqrt(ops.add(mean, np.float32(self.shape.epsilon)))
        normal = ops.multiply(x, ops.divide(np.float32(1), root))
        return ops.multiply(normal, self.vector(f"{name}.weight"))

    def rotate(self, x: Any, turns: tuple[Any, Any]) -> Any:
        """Rotary embedding (arXiv 2104.09864), half-split: x [rows, heads, 1, head_dim]."""
        half = self.shape.head_dim // 2
        axis, step = np.array([3]), np.array([1])
        first = ops.slice(x, np.array([0]), np.array([half]), step, axis)
        second = ops.slice(x, np.array([half]), np.array([2 * half]), step, axis)
        turned = ops.concat([ops.multiply(second, np.float32(-1)), first], -1)
        return ops.add(ops.multiply(x, turns[0]), ops.multiply(turned, turns[1]))

    def activate(self, x: Any) -> Any:
        if self.shape.activation == "silu":
            return ops.swish(x)
        return ops.gelu(x, "TANH" if self.shape.activation == "gelu_tanh" else "ERF")

    # -- the whole

    def build(self) -> ov.Model:
        tokens = self.input("tokens", [-1], np.int32)
        positions = self.input("positions", [-1], np.int32)
        self.paging = [
            self.input(name, [-1], np.int32)
            for name in ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
        ]
        self.longest = self.input("max_context_len", [], np.int32)
        sampled = self.input("sampled", [-1], np.int32)
        self.masks = [self.mask(site) for site in SITES]
        hidden = ops.gather(self.matrix("embedding"), tokens, np.int32(0))
        turns = None
        if "position" in self.weights:
            hidden = ops.add(hidden, ops.gather(self.vector("position"), positions, np.int32(0)))
        else:
            turns = (self.turn("cosines", positions), self.turn("sines", positions))
        for index in range(self.shape.layers):
            hidden = ops.add(hidden, self.attention(index, hidden, turns))
            hidden = ops.add(hidden, self.mlp(index, hidden))
        last = self.norm(ops.gather(hidden, sampled, np.int32(0)), "norm")
        head = "head" if "head.codes" in self.weights else "embedding"
        logits = ops.matmul(last, self.matrix(head), False, True)
        return ov.Model(self.outputs(logits), self.parameters, "decoder")

    def outputs(self, logits: Any) -> list[Any]:
        """The logits, and what greedy replies need of them, so that a step of greedy replies
        alone need not look at them."""
        best = ops.topk(logits, np.int32(1), -1, "max", "value")
        largest = best.output(0)  # [samples, 1]
        rest = ops.reduce_sum(ops.exp(ops.subtract(logits, largest)), np.array([-1]), True)
        named = {"logits": logits.output(0), "best": best.output(1)}
        named["probability"] = ops.divide(np.float32(1), rest).output(0)
        # the plugin's exp and top-k lose NaN; a sum keeps it
        named["total"] = ops.reduce_sum(logits, np.array([-1]), True).output(0)
        for name, output in named.items():
            output.set_names({name})
        return [ops.result(output) for output in named.values()]

    def turn(self, name: str, positions: Any) -> Any:
        """[rows, 1, 1, head_dim]"""
        rows = ops.gather(self.vector(name), positions, np.int32(0))
        return ops.unsqueeze(rows, np.array([1, 2]))

    def attention(self, index: int, hidden: Any, turns: tuple[Any, Any] | None) -> Any:
        shape, path = self.shape, f"layers.{index}"
        x = self.norm(hidden, f"{path}.attention_norm")
        joined = self.linear(x, f"{path}.qkv", 4 * index, self.masks[0])
        width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        if turns is None:
            query, key, value = self.split(joined, [width, kv_width, kv_width])
        elif shape.qk_norm:
            query, key, value = self.split(joined, [width, kv_width, kv_width])
            query = self.turned(query, shape.heads, turns, f"{path}.q_norm")
            key = self.turned(key, shape.kv_heads, turns, f"{path}.k_norm")
        else:  # queries and keys are turned together
            both, value = self.split(joined, [width + kv_width, kv_width])
            both = self.turned(both, shape.heads + shape.kv_heads, turns, None)
            query, key = self.split(both, [width, kv_width])
        mixed = self.paged_attention(index, query, key, value)
        return self.linear(mixed, f"{path}.out", 4 * index + 1, self.masks[1])

    def split(self, x: Any, widths: list[int]) -> list[Any]:
        return list(ops.variadic_split(x, np.int32(1), np.array(widths)).outputs())

    def turned(self, x: Any, heads: int, turns: tuple[Any, Any], norm: str | None) -> Any:
        size = self.shape.head_dim
        x = ops.reshape(x, np.array([-1, heads, 1, size]), False)
        if norm is not None:
            x = self.norm(x, norm)
        return ops.reshape(self.rotate(x, turns), np.array([-1, heads * size]), False)

    def paged_attention(self, index: int, query: Any, key: Any, value: Any) -> Any:
        """Inputs of the operator in its order; what is empty or 0 is switched off."""
        shape = self.shape
        ints, floats = np.empty(0, np.int32), np.empty(0, np.float32)
        key_cache = self.input(f"key_cache.{index}", None, ov.Type.dynamic)
        value_cache = self.input(f"value_cache.{index}", None, ov.Type.dynamic)
        inputs = [query, key, value, key_cache, value_cache, *self.paging]
        inputs += [np.float32(shape.scale), np.int32(0), floats, self.longest]
        inputs += [ints, ints, ints, floats]  # score window, rotation of the cache
        inputs += [floats, np.int32(0), np.int32(0)]  # sparse attention
        inputs += [floats, np.int32(0), ints, ints, ints]  # sinks, eviction
        inputs += [ints, np.empty(0, np.uint8), ints]  # token types, bias between queries
        node = _PagedAttentionExtension([_output(item) for item in inputs])
        info = node.get_rt_info()  # what the plugin lays the cache out by
        info["num_k_heads"] = info["num_v_heads"] = shape.kv_heads
        info["k_head_size"] = info["v_head_size"] = shape.head_dim
        return node.output(0)

    def mlp(self, index: int, hidden: Any) -> Any:
        path = f"layers.{index}"
        x = self.norm(hidden, f"{path}.mlp_norm")
        wide = self.linear(x, f"{path}.up", 4 * index + 2, self.masks[2])
        if self.shape.gated:
            half = self.weights[f"{path}.up.codes"].shape[0] // 2
            gate, up = self.split(wide, [half, half])
            wide = ops.multiply(self.activate(gate), up)
        else:
            wide = self.activate(wide)
        return self.linear(wide, f"{path}.down", 4 * index + 3, self.masks[3])


def _output(item: Any) -> Any:
    if isinstance(item, np.ndarray | np.generic):
        return ops.constant(item).output(0)
    return item.output(0) if isinstance(item, ov.Node) else item
