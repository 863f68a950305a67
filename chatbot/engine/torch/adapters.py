"""LoRA adapters (arXiv 2106.09685) read from PEFT directories as they are.

An adapter adds ``scale * B @ A`` to the weight of each module it targets. Here it stays apart
from the weights, so that any number of adapters serve one batch (as in Punica, arXiv 2310.18547):
each run of rows with one adapter gets its own ``x @ A^T @ B^T * scale``.
"""

import itertools
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from chatbot.engine.torch.models import Decoder, Linear, LoraDelta
from chatbot.errors import AdapterInvalid

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")
# options that change what the adapter computes and that the engine does not do; with the values
# that mean "not used"
_REFUSED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
}
_uids = itertools.count()


@dataclass(eq=False, slots=True)
class LoraAdapter:
    """``uid`` is unique to this load, so cached blocks of an earlier adapter of the same name
    are never found again."""

    name: str
    uid: str
    deltas: tuple[LoraDelta | None, ...]  # by site of the decoder
    users: int = 0  # requests that have not ended


def load_adapter(name: str, directory: Path, decoder: Decoder) -> LoraAdapter:
    """Read and check a PEFT adapter directory for this decoder.

    Raises:
        AdapterInvalid: names the file and the reason.
    """
    config = _read_config(directory / CONFIG)
    matrices = _read_weights(directory / WEIGHTS)
    by_site: dict[int, dict[str, LoraDelta]] = {}
    owners = {module: linear for linear in decoder.sites for module in linear.parts}
    for module, sides in matrices.items():
        linear = owners.get(module)
        if linear is None:
            raise AdapterInvalid(
                f"{directory / WEIGHTS}: adapts {module}, which the base model does not have or "
                "the engine cannot adapt"
            )
        part = linear.parts[module]
        wanted = (part.stop - part.start, linear.weight.shape[1])
        down, up = _check_pair(directory / WEIGHTS, module, sides, wanted)
        scale = _scale(directory / CONFIG, config, module, down.shape[0])
        delta = LoraDelta(down.float().t(), up.float().t() * scale)
        by_site.setdefault(linear.site, {})[module] = delta
    deltas = tuple(
        _fuse(linear, by_site[site], decoder) if site in by_site else None
        for site, linear in enumerate(decoder.sites)
    )
    return LoraAdapter(name, f"{name}#{next(_uids)}", deltas)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterInvalid(f"{path}: the file is missing; is this a PEFT adapter?") from None
    except (OSError, ValueError) as error:
        raise AdapterInvalid(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise AdapterInvalid(f"{path}: peft_type is {kind!r}; the engine knows LORA")
    for option, unused in _REFUSED.items():
        if config.get(option) not in unused:
            raise AdapterInvalid(
                f"{path}: {option}={config[option]!r} is not supported; train without it"
            )
    return config


def _read_weights(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Module path -> {"A": [rank, in], "B": [out, rank]}."""
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise AdapterInvalid(f"{path}: the file is missing") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise AdapterInvalid(f"{path}: is damaged or not a safetensors file ({error})") from error
    matrices: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.match(key)
        if match is None:
            raise AdapterInvalid(f"{path}: holds {key}, which is not a LoRA matrix")
        if not torch.isfinite(tensor).all():
            raise AdapterInvalid(f"{path}: {key} has values that are not finite numbers")
        matrices.setdefault(match["module"], {})[match["side"]] = tensor
    if not matrices:
        raise AdapterInvalid(f"{path}: holds no LoRA matrix")
    return matrices


def _check_pair(
    path: Path, module: str, sides: dict[str, torch.Tensor], wanted: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(A [rank, in], B [out, rank]) of a module whose weight is ``wanted`` = (out, in)."""
    if sides.keys() != {"A", "B"}:
        missing = ({"A", "B"} - sides.keys()).pop()
        raise AdapterInvalid(f"{path}: {module} has no lora_{missing}")
    down, up = sides["A"], sides["B"]
    shapes = f"A {list(down.shape)}, B {list(up.shape)}"
    if down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1]:
        raise AdapterInvalid(f"{path}: {module}: {shapes} are not a LoRA pair")
    if (up.shape[0], down.shape[1]) != wanted:
        raise AdapterInvalid(
            f"{path}: {module}: {shapes} do not fit the base model's weight {list(wanted)}; "
            "was the adapter trained on another base model?"
        )
    return down, up


def _scale(path: Path, config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with rank stabilisation (arXiv 2312.03732); patterns are
    matched to the end of the module's path, as PEFT does."""
    stated = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if not isinstance(alpha, int | float) or stated != rank:
        raise AdapterInvalid(
            f"{path}: {module}: r={stated!r}, alpha={alpha!r} do not fit matrices of rank {rank}"
        )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _fuse(linear: Linear, deltas: dict[str, LoraDelta], decoder: Decoder) -> LoraDelta:
    """One delta of a fused matrix from those of its parts."""
    out, size = linear.weight.shape
    rank = sum(delta.down.shape[1] for delta in deltas.values())
    down = torch.zeros(size, rank)
    up = torch.zeros(rank, out)
    start = 0
    for module, delta in deltas.items():
        ranks = slice(start, start + delta.down.shape[1])
        down[:, ranks] = delta.down
        up[ranks, linear.parts[module]] = delta.up
        start = ranks.stop
    return LoraDelta(down.to(linear.weight), up.to(linear.weight))


def merge_adapter(decoder: Decoder, adapter: LoraAdapter) -> None:
    """Add the adapter to the weights for good: W + scale * B @ A, computed in float32. Merging
    the same adapter again changes nothing."""
    if adapter.uid in decoder.merged:
        return
    decoder.merged.add(adapter.uid)
    for linear, delta in zip(decoder.sites, adapter.deltas, strict=True):
        if delta is not None:
            change = (delta.down.float() @ delta.up.float()).t()
            linear.weight = (linear.weight.float() + change).to(linear.weight.dtype)
