"""Our runtimes' runners without an engine around them: logits of whole texts."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from chatbot.base_models import BUILT_IN, base_directory, load_base, load_tokenizer
from chatbot.engine.torch.adapters import LoraAdapter, load_adapter
from chatbot.engine.torch.blocks import BLOCK_SIZE
from chatbot.engine.torch.device import resolve_device, resolve_dtype
from chatbot.engine.torch.families import build_decoder
from chatbot.engine.torch.runner import TorchRunner
from chatbot.engine.torch.scheduler import Step

CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class Scorer:
    """A runner that gives the logits [rows, vocabulary] of a step's rows, and the adapter that
    its requests name."""

    runner: Any
    block_size: int
    adapter: LoraAdapter | None

    def score(self, step: Step) -> torch.Tensor:
        if not isinstance(self.runner, TorchRunner):
            logits: torch.Tensor = self.runner.score(step)
            return logits
        with torch.inference_mode():
            works = list(step.works)
            batch = replace(self.runner.build(works), sampled=torch.arange(step.rows))
            return self.runner.decoder.forward(batch, self.runner.cache).float()


def open_runner(
    runtime: str,
    data_dir: Path,
    adapter: Path | None,
    cache_tokens: int,
    dtype: str = "auto",
    merged: bool = True,
) -> Scorer:
    """``runtime``: torch or openvino, as an engine would run it with ``FRONTDESK_DTYPE=dtype``; on
    openvino with the adapter ``merged`` into the weights, as it is once it was there a while."""
    if runtime == "openvino":
        return _openvino(data_dir, adapter, cache_tokens, dtype, merged)
    device = resolve_device("auto")
    kind, _ = resolve_dtype(dtype, device)
    model, tokenizer = load_base(BUILT_IN, data_dir, kind, str(device))
    decoder = build_decoder(model, CONTEXT, frozenset((tokenizer.eos_token_id,)))
    tuned = load_adapter("version", adapter, decoder) if adapter else None
    return Scorer(TorchRunner(decoder, cache_tokens // BLOCK_SIZE, BLOCK_SIZE), BLOCK_SIZE, tuned)


def _openvino(
    data_dir: Path, adapter: Path | None, cache_tokens: int, dtype: str, merged: bool
) -> Scorer:
    from chatbot.engine.openvino.engine import skeleton
    from chatbot.engine.openvino.export import load_or_export, merged_model
    from chatbot.engine.openvino.graph import BLOCK_SIZE as OPENVINO_BLOCK
    from chatbot.engine.openvino.runner import OpenVinoRunner

    source = base_directory(BUILT_IN, data_dir)
    end_id = load_tokenizer(source).eos_token_id
    model = load_or_export(BUILT_IN, source, data_dir, CONTEXT, end_id, lambda _: None)
    tuned = load_adapter("version", adapter, skeleton(model)) if adapter else None
    runner = OpenVinoRunner(model, cache_tokens // OPENVINO_BLOCK, dtype, 0)
    if tuned is not None and merged:
        base, _ = load_base(BUILT_IN, data_dir, torch.float32)
        config = base.config
        decoder = build_decoder(base, CONTEXT, frozenset())
        runner.merge(tuned.uid, merged_model(tuned, decoder, config, model))
    return Scorer(runner, OPENVINO_BLOCK, tuned)
