"""Adapters that become part of the weights, in the background.

Beside the weights an adapter costs its own small products at every matrix; for few replies these
take as long as the matrices themselves. In the weights it costs nothing, but a copy of the model.
So a version is served at once beside the weights, merged meanwhile, and requests that come
afterwards get the merged one. A reply keeps to what it began with: nothing changes under it.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

import structlog
import torch

from chatbot.engine.torch.adapters import LoraAdapter, merge_adapter
from chatbot.engine.torch.device import release_memory, use_threads
from chatbot.engine.torch.models import Decoder, Layer, Linear

log = structlog.get_logger(__name__)
LARGEST = 65504.0  # of float16; NaN is not below it either


class MergingRunner(Protocol):
    """What a runner has that computes merged adapters."""

    def merge(self, uid: str, model: Any) -> None:
        """From now on compute rows of the adapter ``uid`` with ``model``, whose weights have it in
        them. May be called beside ``run``, by another thread."""
        ...

    def unmerge(self, uid: str) -> None:
        """Give the memory back. No row of this adapter may come any more."""
        ...


class Merger:
    """Merges at most ``most`` adapters at a time, the one loaded last first.

    ``adapters``: the engine's, by name; the merged one takes the place of the other there.
    ``build``: makes what the runner computes an adapter with, in a thread of its own.
    """

    def __init__(
        self,
        adapters: dict[str, LoraAdapter],
        runner: MergingRunner,
        build: Callable[[LoraAdapter], Any],
        most: int,
    ) -> None:
        self._adapters = adapters
        self._runner = runner
        self._build = build
        self._most = most
        self._before: dict[str, LoraAdapter] = {}  # merged name -> what it was beside the weights
        self._refused: set[str] = set()  # uids that cannot be merged
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine-merger")
        self._task: asyncio.Task[None] | None = None

    @property
    def merged(self) -> tuple[str, ...]:
        """Names of the adapters that are in weights of their own."""
        return tuple(self._before)

    def look(self) -> None:
        """Begin to merge, if there is room and something to do."""
        if self._task is not None or len(self._before) >= self._most:
            return
        waiting = [
            adapter
            for name, adapter in self._adapters.items()
            if name not in self._before and adapter.uid not in self._refused
        ]
        if waiting:
            self._task = asyncio.create_task(self._merge(waiting[-1]), name="merge")

    def forget(self, name: str, adapter: LoraAdapter) -> LoraAdapter | None:
        """The adapter was dropped and nobody uses it any more; gives what it was before it was
        merged, which somebody may still use."""
        before = self._before.pop(name, None)
        if before is not None:
            self._runner.unmerge(adapter.uid)
        self.look()
        return before

    async def close(self) -> None:
        if self._task is None:
            self._thread.shutdown()  # nothing runs in it
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        await asyncio.to_thread(self._thread.shutdown)

    async def _merge(self, adapter: LoraAdapter) -> None:
        twin = replace(adapter, uid=f"{adapter.uid} merged", users=0)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._work, adapter, twin.uid)
        except Exception as error:  # it is served beside the weights, as before
            self._refused.add(adapter.uid)
            log.warning("adapter not merged", adapter=adapter.name, error=str(error))
        else:
            if self._adapters.get(adapter.name) is adapter:
                self._adapters[adapter.name] = twin
                self._before[adapter.name] = adapter
                log.info("adapter merged", adapter=adapter.name)
            else:  # dropped meanwhile
                self._runner.unmerge(twin.uid)
        finally:
            self._task = None
        self.look()

    def _work(self, adapter: LoraAdapter, uid: str) -> None:
        use_threads(1)  # replies go on beside it
        try:
            self._runner.merge(uid, self._build(adapter))
        finally:
            release_memory()


def merge_into(decoder: Decoder, adapter: LoraAdapter) -> None:
    """Add the adapter to the decoder's weights for good.

    Raises:
        ValueError: an adapter gone bad. Beside the weights its own replies alone end with an error;
            in them, rounded, it could look sound.
    """
    merge_adapter(decoder, adapter)
    if not all(bool((site.weight.abs() < LARGEST).all()) for site in decoder.sites):
        raise ValueError("its numbers are no weights")


@torch.inference_mode()
def merged_decoder(adapter: LoraAdapter, exact: Decoder, base: Decoder) -> Decoder:
    """The decoder ``base`` with the adapter in its weights, computed from ``exact``, the same model
    in float32, which is used up by this. What the adapter does not touch is ``base``'s, in memory
    once. Raises ValueError: see :func:`merge_into`."""
    merge_into(exact, adapter)

    def rounded(linear: Linear, tuned: Linear) -> Linear:
        return replace(linear, weight=tuned.weight.to(base.dtype), packed=None)

    def merged(layer: Layer, tuned: Layer) -> Layer:
        return replace(
            layer,
            qkv=rounded(layer.qkv, tuned.qkv),
            out=rounded(layer.out, tuned.out),
            up=rounded(layer.up, tuned.up),
            down=rounded(layer.down, tuned.down),
        )

    pairs = zip(base.layers, exact.layers, strict=True)
    decoder = replace(base, layers=[merged(*pair) for pair in pairs], merged={adapter.uid})
    decoder.pack()
    return decoder
