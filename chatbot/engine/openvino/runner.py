"""The runner: one step of the scheduler on a compiled OpenVINO graph."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
import torch

from chatbot.engine.openvino.export import Exported
from chatbot.engine.openvino.graph import SITES, build_graph
from chatbot.engine.openvino.lora import LoraBank, LoraBanks, masks
from chatbot.engine.openvino.rows import Layout, Rows
from chatbot.engine.torch.adapters import LoraAdapter
from chatbot.engine.torch.runner import by_weights
from chatbot.engine.torch.sampling import Choice, choose_tokens, plainly_greedy, rows_of, verify
from chatbot.engine.torch.scheduler import Step, Work
from chatbot.engine.torch.sequence import Sequence


class OpenVinoRunner:
    """Runs steps (see :class:`chatbot.engine.torch.runner.Runner`). ``precision``: "float32",
    "bfloat16" or "auto", which is bfloat16 where the processor computes in it. ``weights``: "int8",
    "bfloat16" or "auto", which is bfloat16 where that is computed in tiles (AMX): there int8
    weights take longer to widen than twice the bytes take to read.

    Rows whose adapter was merged (:meth:`merge`) are computed by a graph of their own, the others
    of a step together, with LoRA; all of them on one cache. So what a row gives does not depend on
    its company: see :mod:`chatbot.engine.openvino.rows`.
    """

    def __init__(
        self,
        model: Exported,
        blocks: int,
        precision: str,
        threads: int,
        weights: str = "auto",
    ) -> None:
        self._core = ov.Core()
        self._kind = _precision(self._core, precision)
        self._wide = weights == "bfloat16" or (weights == "auto" and _in_tiles(self._kind))
        self._options = _options(self._kind, precision, threads)
        self.precision = self._kind.to_string()
        self.weights = "bfloat16" if self._wide else "int8"
        graph = build_graph(model.shape, model.weights, self._kind, self._wide)
        compiled = self._core.compile_model(graph, "CPU", self._options)
        self._request = compiled.create_infer_request()
        self._merged: dict[str, Any] = {}  # adapter's uid -> request
        self._unmerged: list[Any] = []  # what nobody uses any more; the last one goes first
        self._last, self._sampled = self._request, 0
        self._tensors = _cache_tensors(compiled, blocks + 1)
        self._caches = [_bytes_of(tensor) for tensor in self._tensors.values()]
        kinds = {tensor.get_element_type() for tensor in self._tensors.values()}
        self._layout = Layout(
            spare=blocks,
            threads=compiled.get_property("INFERENCE_NUM_THREADS"),
            steady=kinds <= {ov.Type.bf16, ov.Type.f32},
        )
        _set_all(self._request, self._tensors)
        self._banks = LoraBanks(_sizes(model), self._kind)
        self._bank: LoraBank | None = None
        self._use(self._banks.bank([]), [], 2)
        self._warm_up(self._request)

    @property
    def cache_bytes(self) -> int:
        return sum(int(array.nbytes) for array in self._caches)

    def run(self, step: Step) -> list[Choice]:
        """Compute the step; one choice for each of ``step.sampling``."""
        if self._unmerged:
            self._last = self._request  # it may be the one that goes
            self._unmerged.pop()  # one thing a step
        if step.fresh or step.copies:
            fresh, (sources, targets) = list(step.fresh), step.copied
            for cache in self._caches:
                held = cache[sources]
                cache[fresh] = 0
                cache[targets] = held
        found: dict[Sequence, Choice] = {}
        for uid, works in by_weights(step.works, self._merged).items():
            request = self._merged.get(uid, self._request)
            self._compute(request, Rows(works, self._layout))
            sampling = [work for work in works if work.samples]
            if sampling:
                choices = verify(sampling, *_choose(request, sampling))
                pairs = zip(sampling, choices, strict=True)
                found |= {work.sequence: choice for work, choice in pairs}
        return [found[work.sequence] for work in step.sampling]

    def score(self, step: Step) -> torch.Tensor:
        """Compute a step of works with one adapter, and return the logits [rows, vocabulary] of
        every row, for measurements; chooses no token."""
        (uid,) = by_weights(step.works, self._merged)
        rows = Rows(step.works, self._layout, every=True)
        self._compute(self._merged.get(uid, self._request), rows)
        return torch.from_numpy(self.logits().copy())

    def logits(self) -> Any:
        """Of the last inference: float32 [samples, vocabulary], valid until the next one."""
        return self._last.get_tensor("logits").data[: self._sampled]

    # -- adapters in the weights

    def merge(self, uid: str, model: Exported) -> None:
        """See :class:`chatbot.engine.torch.merging.MergingRunner`."""
        graph = build_graph(model.shape, model.weights, None, self._wide)
        request = self._core.compile_model(graph, "CPU", self._options).create_infer_request()
        _set_all(request, self._tensors)
        self._warm_up(request)
        self._merged[uid] = request

    def unmerge(self, uid: str) -> None:
        """See :class:`chatbot.engine.torch.merging.MergingRunner`. The memory is given back before
        the next steps: beside one it takes longer, and Python's lock is held all the while."""
        request = self._merged.pop(uid, None)
        if request is not None:
            self._unmerged += [request.get_compiled_model(), request]

    # -- one inference

    def _warm_up(self, request: Any) -> None:
        """What the plugin cannot run fails here, and what it does once is done."""
        _infer(request, Rows([], self._layout))

    def _compute(self, request: Any, rows: Rows) -> None:
        self._last, self._sampled = request, len(rows.sampled)
        if request is self._request:
            used = {adapter.uid: adapter for adapter, _, _ in rows.owners}
            self._use(self._banks.bank(list(used.values())), rows.owners, rows.count)
        _infer(request, rows)

    def _use(self, bank: LoraBank, owners: list[tuple[LoraAdapter, int, int]], rows: int) -> None:
        if bank is not self._bank:
            _set_all(self._request, bank.tensors)
            self._bank = bank
        for site, mask in zip(SITES, masks(bank, rows, owners), strict=True):
            self._request.set_tensor(f"lora_mask.{site}", ov.Tensor(mask))


def _infer(request: Any, rows: Rows) -> None:
    for name, tensor in rows.inputs().items():
        request.set_tensor(name, tensor)
    request.start_async()  # not infer(): that copies every output
    request.wait()


def _choose(request: Any, works: list[Work]) -> tuple[list[int], list[float]]:
    """From the outputs of the last inference, which are valid until the next one."""
    rows = rows_of(works)
    if plainly_greedy(works):
        best, probability, total = (
            request.get_tensor(name).data[: len(rows), 0]
            for name in ("best", "probability", "total")
        )
        # NaN says that the row's logits are not finite numbers
        return best.tolist(), np.where(np.isfinite(total), probability, np.nan).tolist()
    logits = request.get_tensor("logits").data  # float32 [samples or 2, vocabulary]
    return choose_tokens(torch.from_numpy(logits[: len(rows)]), rows)


def _cache_tensors(compiled: Any, blocks: int) -> dict[str, Any]:
    """Memory for ``blocks`` blocks of each layer's keys and values, in the layout that the plugin
    chose, by input name."""
    tensors = {}
    for port in compiled.inputs:
        name = port.get_any_name()
        if name.startswith(("key_cache.", "value_cache.")):
            sizes = [dimension.get_length() for dimension in list(port.get_partial_shape())[1:]]
            tensors[name] = ov.Tensor(port.get_element_type(), [blocks, *sizes])
    return tensors


def _bytes_of(tensor: Any) -> Any:
    """[blocks, bytes of one]"""
    data = tensor.data.view(np.uint8)
    return data.reshape(data.shape[0], -1)


def _set_all(request: Any, tensors: Mapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        request.set_tensor(name, tensor)


def _precision(core: ov.Core, name: str) -> Any:
    if name == "auto":
        return core.get_property("CPU", "INFERENCE_PRECISION_HINT")
    return ov.Type.bf16 if name == "bfloat16" else ov.Type.f32


def _in_tiles(kind: Any) -> bool:
    return kind == ov.Type.bf16 and bool(torch.cpu.get_capabilities().get("amx_bf16"))


def _options(kind: Any, precision: str, threads: int) -> dict[str, Any]:
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": kind, "PERFORMANCE_HINT": "LATENCY"}
    if kind == ov.Type.f32:
        # activations quantized to int8 cost more quality than the 1 % that the product allows
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
    if kind == ov.Type.bf16:  # half the tokens in the memory, and nothing to widen
        options["KV_CACHE_PRECISION"] = ov.Type.bf16
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
