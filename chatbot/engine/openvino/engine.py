"""The OpenVINO engine: the scheduler, cache policy, sampling and LoRA of the torch engine on
OpenVINO's CPU kernels (see docs/decisions/0009-openvino.md for why not OpenVINO GenAI's pipeline).
"""

import functools

import structlog
import torch

from chatbot.base_models import base_directory, base_tokenizer, load_model, load_tokenizer
from chatbot.engine.openvino.export import Exported, load_or_export, merged_model
from chatbot.engine.openvino.graph import BLOCK_SIZE, SITES
from chatbot.engine.openvino.runner import OpenVinoRunner
from chatbot.engine.torch.adapters import LoraAdapter
from chatbot.engine.torch.blocks import BlockManager
from chatbot.engine.torch.draft_policy import DraftPolicy
from chatbot.engine.torch.engine import TorchEngine
from chatbot.engine.torch.families import build_decoder
from chatbot.engine.torch.merging import Merger
from chatbot.engine.torch.models import Decoder, Layer, Linear
from chatbot.errors import BaseModelUnavailable, SettingsError
from chatbot.settings import Settings

log = structlog.get_logger(__name__)


class OpenVinoEngine(TorchEngine):
    """See :class:`chatbot.engine.interface.Engine`.

    Raises:
        SettingsError: a setting that this runtime cannot follow.
    """

    prompts_apart = True  # see chatbot.engine.openvino.rows

    def __init__(self, settings: Settings, draft_policy: DraftPolicy | None = None) -> None:
        if settings.device not in ("auto", "cpu"):
            raise SettingsError(
                f"FRONTDESK_DEVICE={settings.device}: the openvino engine runs on the CPU; use "
                "auto or cpu, or FRONTDESK_ENGINE=torch"
            )
        if settings.prefill_chunk_tokens < BLOCK_SIZE:
            raise SettingsError(
                f"FRONTDESK_PREFILL_CHUNK_TOKENS={settings.prefill_chunk_tokens}: the openvino "
                f"engine needs at least {BLOCK_SIZE}"
            )
        self._base: Exported
        super().__init__(settings, load_model, base_tokenizer, draft_policy=draft_policy)

    def _load(self) -> None:
        settings = self._settings
        report = functools.partial(log.info, "engine preparing")
        source = base_directory(
            settings.base_model, settings.data_dir, lambda text: report(progress=text)
        )
        self._tokenizer = load_tokenizer(source)
        model = load_or_export(
            settings.base_model,
            source,
            settings.data_dir,
            settings.max_context_tokens,
            self._tokenizer.eos_token_id,
            lambda text: report(progress=text),
        )
        self._decoder = skeleton(model)
        total = settings.kv_cache_tokens // BLOCK_SIZE
        self._max_context = min(model.context, total * BLOCK_SIZE)
        try:
            runner = OpenVinoRunner(
                model, total, settings.dtype, settings.engine_threads, settings.openvino_weights
            )
        except (RuntimeError, MemoryError) as error:
            raise BaseModelUnavailable(
                f"OpenVINO cannot load {settings.base_model} with a cache of "
                f"{settings.kv_cache_tokens} tokens ({error}); lower FRONTDESK_KV_CACHE_TOKENS, "
                "or set FRONTDESK_ENGINE=torch"
            ) from error
        self._runner = runner
        # asked for by name, float32 is the reference: nothing is rounded once more
        most = 0 if settings.dtype == "float32" else settings.merged_versions
        self._base = model
        self._merger = Merger(self._adapters, runner, self._merged, most)
        self._scheduler = self._make_scheduler(BlockManager(total, BLOCK_SIZE))
        log.info(
            "engine loaded",
            model=settings.base_model,
            runtime="openvino",
            precision=runner.precision,
            weights=runner.weights,
            cache_bytes=runner.cache_bytes,
            max_context=self._max_context,
        )

    def _merged(self, adapter: LoraAdapter) -> Exported:
        settings = self._settings
        model = load_model(settings.base_model, settings.data_dir, torch.float32)
        config = model.config
        decoder = build_decoder(model, settings.max_context_tokens, frozenset())
        return merged_model(adapter, decoder, config, self._base)


def skeleton(model: Exported) -> Decoder:
    """The decoder's shape without its weights: what requests and adapters are checked against.
    Each tensor is one number seen through strides of 0."""

    def empty(*sizes: int) -> torch.Tensor:
        return torch.zeros(1).expand(*sizes)

    def layer(index: int) -> Layer:
        linears = []
        for offset, site in enumerate(SITES):
            out, size = model.weights[f"layers.{index}.{site}.codes"].shape
            rows = model.parts[len(SITES) * index + offset].items()
            parts = {module: slice(first, last) for module, (first, last) in rows}
            linears.append(Linear(empty(out, size), None, parts))
        qkv, out_linear, up, down = linears
        return Layer(_identity, qkv, out_linear, _identity, up, down, model.shape.scale)

    shape = model.shape
    embedding = empty(model.vocabulary, shape.hidden)
    return Decoder(
        embedding=embedding,
        layers=[layer(index) for index in range(shape.layers)],
        final_norm=_identity,
        head=embedding,
        activation=_identity,
        gated=shape.gated,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        context=model.context,
        end_ids=model.end_ids,
    )


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x
