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

import structlog
import torch

from chatbot.engine.openvino.export import Exported, convert
from chatbot.engine.openvino.runner import OpenVinoRunner
from chatbot.engine.torch.adapters import LoraAdapter, merge_adapter
from chatbot.engine.torch.models import Decoder

log = structlog.get_logger(__name__)
LARGEST = 65504.0  # of float16; NaN is not below it either
LoadDecoder = Callable[[], tuple[Decoder, object]]  # float32 weights, transformers' configuration


class Merger:
    """Merges at most ``most`` adapters at a time, the one loaded last first.

    ``adapters``: the engine's, by name; the merged one takes the place of the other there.
    ``load``: of the base model's exact weights, needed for the time of a merge.
    """

    def __init__(
        self,
        adapters: dict[str, LoraAdapter],
        runner: OpenVinoRunner,
        load: LoadDecoder,
        base: Exported,
        most: int,
    ) -> None:
        self._adapters = adapters
        self._runner = runner
        self._load = load
        self._base = base
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
        self._runner.unmerge(adapter.uid)
        before = self._before.pop(name, None)
        self.look()
        return before

    async def close(self) -> None:
        if self._task is not None:
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
        torch.set_num_threads(1)  # of this thread: replies go on beside it
        decoder, config = self._load()
        self._runner.merge(uid, merged_model(adapter, decoder, config, self._base))


@torch.inference_mode()
def merged_model(
    adapter: LoraAdapter, decoder: Decoder, config: object, base: Exported
) -> Exported:
    """The int8 model of the ``decoder``'s exact weights, which are used up by this, with the
    adapter in them. What the adapter does not touch is ``base``'s, in memory once.

    Raises:
        ValueError: an adapter gone bad. Beside the weights its own replies alone end with an error;
            in them, rounded, it could look sound.
    """
    merge_adapter(decoder, adapter)
    if not all(bool((site.weight.abs() < LARGEST).all()) for site in decoder.sites):
        raise ValueError("its numbers are no weights")
    model = convert(decoder, config, lambda _: None)
    same = {name: base.weights[name] for name in model.weights if not _adapted(name)}
    return replace(model, weights=model.weights | same)


def _adapted(name: str) -> bool:
    return name.startswith("layers.") and name.endswith((".codes", ".zero", ".scale"))
