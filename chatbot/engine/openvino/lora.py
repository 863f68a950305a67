"""The adapters of a step as the graph's LoRA inputs."""

from collections import OrderedDict
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import torch

from chatbot.engine.openvino.graph import SITES
from chatbot.engine.torch.adapters import LoraAdapter

BANKS_KEPT = 3  # e.g. the live version, a canary, and both at once


@dataclass(frozen=True, slots=True)
class LoraBank:
    """A set of adapters side by side. ``columns[kind][uid]``: the ranks that are an adapter's
    own at the sites of this kind; ``tensors``: by input name."""

    columns: tuple[dict[str, slice], ...]
    ranks: tuple[int, ...]  # by kind
    tensors: dict[str, ov.Tensor]


class LoraBanks:
    """Banks of the sets of adapters that steps used last. A set costs its size in memory and one
    copy when it is first needed; a step costs the ranks of the adapters that it uses itself."""

    def __init__(self, sizes: Items[tuple[int, int]], element_type: Any) -> None:
        """``sizes``: (out, in) of each site."""
        self._sizes = sizes
        self._type = element_type
        self._banks: OrderedDict[tuple[str, ...], LoraBank] = OrderedDict()

    def bank(self, adapters: Items[LoraAdapter]) -> LoraBank:
        """The bank of exactly these adapters; none at all is a bank of rank 0."""
        adapters = sorted(adapters, key=lambda adapter: adapter.uid)
        key = tuple(adapter.uid for adapter in adapters)
        if key not in self._banks:
            self._banks[key] = self._build(adapters)
        self._banks.move_to_end(key)
        while len(self._banks) > BANKS_KEPT:
            self._banks.popitem(last=False)
        return self._banks[key]

    def _build(self, adapters: Items[LoraAdapter]) -> LoraBank:
        columns: list[dict[str, slice]] = []
        ranks = []
        for kind in range(len(SITES)):
            first, own = 0, {}
            for adapter in adapters:
                deltas = adapter.deltas[kind :: len(SITES)]
                rank = max((d.down.shape[1] for d in deltas if d is not None), default=0)
                own[adapter.uid] = slice(first, first + rank)
                first += rank
            columns.append(own)
            ranks.append(first)
        tensors: dict[str, ov.Tensor] = {}
        for site, (out, size) in enumerate(self._sizes):
            kind = site % len(SITES)
            down, up = torch.zeros(size, ranks[kind]), torch.zeros(ranks[kind], out)
            for adapter in adapters:
                delta = adapter.deltas[site]
                if delta is not None:
                    start = columns[kind][adapter.uid].start
                    place = slice(start, start + delta.down.shape[1])
                    down[:, place], up[place] = delta.down, delta.up
            tensors[f"lora_down.{site}"] = self._tensor(down)
            tensors[f"lora_up.{site}"] = self._tensor(up)
        return LoraBank(tuple(columns), tuple(ranks), tensors)

    def _tensor(self, values: torch.Tensor) -> ov.Tensor:
        tensor = ov.Tensor(self._type, list(values.shape))
        if self._type == ov.Type.bf16:  # numpy has no bfloat16: the bits are copied
            bits = values.to(torch.bfloat16).view(torch.int16).numpy()
            tensor.data.view(np.int16)[...] = bits
        else:
            tensor.data[...] = values.numpy()
        return tensor


def masks(
    bank: LoraBank, rows: int, owners: Items[tuple[LoraAdapter, int, int]]
) -> list[npt.NDArray[np.bool_]]:
    """For each kind of site [rows, ranks]: whether the row uses the rank. ``owners``: (adapter,
    first row, last row + 1); rows of none stay without LoRA."""
    found = []
    for own, ranks in zip(bank.columns, bank.ranks, strict=True):
        mask = np.zeros((rows, ranks), np.bool_)
        for adapter, first, last in owners:
            mask[first:last, own[adapter.uid]] = True
        found.append(mask)
    return found
