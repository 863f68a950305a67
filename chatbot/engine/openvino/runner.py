"""The runner: one step of the scheduler on a compiled OpenVINO graph."""

import itertools
from collections.abc import Sequence as Items
from typing import Any

import numpy as np
import openvino as ov
import torch

from chatbot.engine.openvino.export import Exported
from chatbot.engine.openvino.graph import BLOCK_SIZE, SITES, build_graph
from chatbot.engine.openvino.lora import LoraBank, LoraBanks, masks
from chatbot.engine.torch.adapters import LoraAdapter
from chatbot.engine.torch.sampling import Choice, choose_tokens, plainly_greedy, rows_of, verify
from chatbot.engine.torch.scheduler import Step, Work


class OpenVinoRunner:
    """Runs steps (see :class:`chatbot.engine.torch.runner.Runner`). ``precision``: "float32",
    "bfloat16" or "auto", which is bfloat16 where the processor computes in it."""

    def __init__(self, model: Exported, blocks: int, precision: str, threads: int) -> None:
        core = ov.Core()
        kind = _precision(core, precision)
        graph = build_graph(model.shape, model.weights, kind)
        compiled = core.compile_model(graph, "CPU", _options(kind, precision, threads))
        self.precision = kind.to_string()
        self._request = compiled.create_infer_request()
        self._caches = self._make_caches(compiled, blocks)
        self._banks = LoraBanks(_sizes(model), kind)
        self._bank: LoraBank | None = None
        self._infer([0, 1], [((0,), 0, 2)], [1])  # what the plugin cannot run fails here

    def _make_caches(self, compiled: Any, blocks: int) -> list[Any]:
        """Memory for ``blocks`` blocks of each layer's keys and values, in the layout that the
        plugin chose; arrays [blocks, ...] of its bytes."""
        arrays = []
        for port in compiled.inputs:
            name = port.get_any_name()
            if not name.startswith(("key_cache.", "value_cache.")):
                continue
            sizes = [dimension.get_length() for dimension in list(port.get_partial_shape())[1:]]
            tensor = ov.Tensor(port.get_element_type(), [blocks, *sizes])
            self._request.set_tensor(name, tensor)
            arrays.append(tensor.data.view(np.uint8).reshape(blocks, -1))
        return arrays

    @property
    def cache_bytes(self) -> int:
        return sum(int(array.nbytes) for array in self._caches)

    def run(self, step: Step) -> list[Choice]:
        """Compute the step; one choice for each of ``step.sampling``."""
        if step.fresh:
            fresh = list(step.fresh)
            for cache in self._caches:
                cache[fresh] = 0
        ends = itertools.accumulate(work.rows for work in step.works)
        wanted = (
            range(end - work.choices, end) for work, end in zip(step.works, ends, strict=True)
        )
        self._compute(step.works, list(itertools.chain.from_iterable(wanted)))
        works = step.sampling
        return verify(works, *self._choose(works)) if works else []

    def score(self, step: Step) -> torch.Tensor:
        """Compute the step and return the logits [rows, vocabulary] of every row, for
        measurements; chooses no token."""
        self._compute(step.works, list(range(step.rows)))
        return torch.from_numpy(self.logits().copy())

    def _compute(self, works: Items[Work], sampled: list[int]) -> None:
        self._set_adapters(works)
        self._infer(
            [t for work in works for t in work.tokens],
            [(work.sequence.blocks, work.start, work.stop) for work in works],
            sampled,
        )

    def _infer(
        self, tokens: list[int], spans: Items[tuple[Items[int], int, int]], sampled: list[int]
    ) -> None:
        """Compute ``tokens`` [rows], the rows of all spans. A span is (blocks, start, end):
        positions ``start .. end-1`` of a sequence in those blocks. ``sampled``: rows whose
        logits are wanted."""
        if self._bank is None:
            self._use(self._banks.bank([]), [], len(tokens))
        tables = [blocks[: -(-end // BLOCK_SIZE)] for blocks, _, end in spans]
        inputs: dict[str, Any] = {
            "tokens": tokens,
            "positions": [place for _, start, end in spans for place in range(start, end)],
            "past_lens": [start for _, start, _ in spans],
            "subsequence_begins": [0, *itertools.accumulate(e - s for _, s, e in spans)],
            "block_indices": [block for table in tables for block in table],
            "block_indices_begins": [0, *itertools.accumulate(map(len, tables))],
            "max_context_len": max(end for _, _, end in spans),
            "sampled": sampled,
        }
        for name, values in inputs.items():
            self._request.set_tensor(name, ov.Tensor(np.array(values, np.int32)))
        self._request.start_async()  # not infer(): that copies every output
        self._request.wait()

    def _set_adapters(self, works: Items[Work]) -> None:
        owners = []
        first = 0
        for work in works:
            last = first + work.rows
            if work.sequence.adapter is not None:
                owners.append((work.sequence.adapter, first, last))
            first = last
        used = {adapter.uid: adapter for adapter, _, _ in owners}
        self._use(self._banks.bank(list(used.values())), owners, first)

    def _use(self, bank: LoraBank, owners: list[tuple[LoraAdapter, int, int]], rows: int) -> None:
        if bank is not self._bank:
            for name, tensor in bank.tensors.items():
                self._request.set_tensor(name, tensor)
            self._bank = bank
        for site, mask in zip(SITES, masks(bank, rows, owners), strict=True):
            self._request.set_tensor(f"lora_mask.{site}", ov.Tensor(mask))

    def logits(self) -> Any:
        """Of the last step: float32 [samples, vocabulary], valid until the next one."""
        return self._request.get_tensor("logits").data

    def _choose(self, works: list[Work]) -> tuple[list[int], list[float]]:
        if plainly_greedy(works):
            best, probability, total = (
                self._request.get_tensor(name).data[:, 0]
                for name in ("best", "probability", "total")
            )
            # NaN says that the row's logits are not finite numbers
            return best.tolist(), np.where(np.isfinite(total), probability, np.nan).tolist()
        return choose_tokens(torch.from_numpy(self.logits()), rows_of(works))


def _precision(core: ov.Core, name: str) -> Any:
    if name == "auto":
        return core.get_property("CPU", "INFERENCE_PRECISION_HINT")
    return ov.Type.bf16 if name == "bfloat16" else ov.Type.f32


def _options(kind: Any, precision: str, threads: int) -> dict[str, Any]:
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": kind, "PERFORMANCE_HINT": "LATENCY"}
    if kind == ov.Type.f32:
        # activations quantized to int8 cost more quality than the 1 % that the product allows
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
    if precision == "float32":  # asked for by name: then the cache is exact, too
        options["KV_CACHE_PRECISION"] = ov.Type.f32
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    return options


def _sizes(model: Exported) -> list[tuple[int, int]]:
    """(out, in) of each site."""
    shapes = (
        model.weights[f"layers.{index}.{site}.codes"].shape
        for index in range(model.shape.layers)
        for site in SITES
    )
    return [(int(shape[0]), int(shape[1])) for shape in shapes]
