"""A base model as int8 weights on disk, converted once.

The weights of every family come through the torch runtime's
:class:`~chatbot.engine.torch.models.Decoder`, so both runtimes support the same models, with the
same fused matrices and therefore the same sites for LoRA. Each output channel of a matrix is
quantized on its own, asymmetrically, to uint8 (``w = (code - zero) * scale``; as NNCF does by
default, https://arxiv.org/abs/2002.08679); vectors stay float32.

A directory holds ``weights.safetensors`` and ``model.json``, and appears whole or not at all.
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file

from chatbot.base_models import BUILT_IN, load_model
from chatbot.engine.openvino.graph import SITES, Shape
from chatbot.engine.torch.adapters import LoraAdapter
from chatbot.engine.torch.families import build_decoder
from chatbot.engine.torch.merging import merge_into
from chatbot.engine.torch.models import Decoder, LayerNorm, RmsNorm
from chatbot.errors import BaseModelUnavailable

FORMAT = 1  # raise it when what is written changes: then everybody converts anew
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
OnProgress = Callable[[str], None]
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Exported:
    """A converted model in memory."""

    shape: Shape
    vocabulary: int
    context: int  # most positions
    end_ids: frozenset[int]
    parts: tuple[dict[str, tuple[int, int]], ...]  # by site: module path -> rows of the matrix
    weights: dict[str, Array]


def load_or_export(
    name: str,
    source: Path,
    data_dir: Path,
    max_context: int,
    end_id: int | None,
    report: OnProgress,
) -> Exported:
    """The int8 model of the base ``name`` whose files are in ``source``, converted if need be.

    It is kept in ``<data_dir>/base/<name>-openvino-int8-<digest>``; the digest covers the source
    files and what of the settings goes into it, so a base that changes is converted again.

    Raises:
        BaseModelUnavailable: the family is not supported, or the disk is full or read-only.
        SettingsError: ``max_context`` reaches beyond the model's attention window.
    """
    target = data_dir / "base" / f"{_slug(name)}-openvino-int8-{_digest(source, max_context)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / f".{target.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits; closing frees the lock
            if not target.is_dir():
                _export_into(target, name, data_dir, max_context, end_id, report)
        return _load(target)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise BaseModelUnavailable(
            f"base model {name}: cannot write or read {target} ({error.strerror or error}). "
            + ("Free disk space there" if full else "Make the folder readable and writable")
            + ", or set FRONTDESK_DATA_DIR to another folder."
        ) from error


def _slug(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in name).strip("-.")
    return (kept or BUILT_IN)[-80:]


def _digest(source: Path, max_context: int) -> str:
    facts: list[Any] = [FORMAT, max_context, (source / "config.json").read_text(encoding="utf-8")]
    for file in sorted(source.glob("*.safetensors")) + sorted(source.glob("*.bin")):
        state = file.stat()
        facts.append([file.name, state.st_size, state.st_mtime_ns])
    return sha256(json.dumps(facts).encode()).hexdigest()[:12]


# -- writing


def _export_into(
    target: Path,
    name: str,
    data_dir: Path,
    max_context: int,
    end_id: int | None,
    report: OnProgress,
) -> None:
    report(f"converting {name} to int8 for OpenVINO (once): loading")
    # float32, also for a large model: scales and rotary angles are computed from these
    model = load_model(name, data_dir, torch.float32)
    config = model.config
    decoder = build_decoder(model, max_context, frozenset(() if end_id is None else (end_id,)))
    del model  # its weights are the decoder's now
    _write(convert(decoder, config, report), target)
    report(f"converting {name} to int8 for OpenVINO: done, kept in {target}")


def convert(decoder: Decoder, config: Any, report: OnProgress) -> Exported:
    """The int8 model of a decoder. ``config``: that of the transformers model it came from.

    Raises:
        BaseModelUnavailable: its activation is not known here.
    """
    norm: Any = decoder.final_norm
    shape = Shape(
        layers=len(decoder.layers),
        hidden=decoder.embedding.shape[1],
        heads=decoder.heads,
        kv_heads=decoder.kv_heads,
        head_dim=decoder.head_dim,
        activation=_activation(config),
        gated=decoder.gated,
        rms=isinstance(norm, RmsNorm),
        epsilon=norm.epsilon,
        scale=decoder.layers[0].scale,
        qk_norm=decoder.layers[0].q_norm is not None,
    )
    parts = tuple(
        {module: (rows.start, rows.stop) for module, rows in site.parts.items()}
        for site in decoder.sites
    )
    weights = _weights(decoder, report)
    vocabulary = decoder.vocabulary
    return Exported(shape, vocabulary, decoder.context, decoder.end_ids, parts, weights)


def _write(model: Exported, target: Path) -> None:
    facts = {
        "shape": asdict(model.shape),
        "vocabulary": model.vocabulary,
        "context": model.context,
        "end_ids": sorted(model.end_ids),
        "parts": model.parts,
    }
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        save_file(model.weights, scratch / "weights.safetensors")
        (scratch / "model.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        scratch.chmod(0o755)
        os.rename(scratch, target)
    except Exception as error:  # safetensors reports a full disk as an error of its own
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _activation(config: Any) -> str:
    name = getattr(config, "hidden_act", None) or getattr(config, "activation_function", None)
    if name not in ACTIVATIONS:
        raise BaseModelUnavailable(
            f"the openvino engine does not know the activation {name!r}; set FRONTDESK_ENGINE=torch"
        )
    return ACTIVATIONS[name]


def _weights(decoder: Decoder, report: OnProgress) -> dict[str, Array]:
    weights: dict[str, Array] = {}
    quantize(weights, "embedding", decoder.embedding)
    if not torch.equal(decoder.head, decoder.embedding):
        quantize(weights, "head", decoder.head)
    for index, layer in enumerate(decoder.layers):
        path = f"layers.{index}"
        for site in SITES:
            linear = getattr(layer, site)
            quantize(weights, f"{path}.{site}", linear.weight)
            if linear.bias is not None:
                weights[f"{path}.{site}.bias"] = _float(linear.bias)
        for part in ("attention_norm", "mlp_norm", "q_norm", "k_norm"):
            _norm(weights, f"{path}.{part}", getattr(layer, part))
        if 4 * (index + 1) // len(decoder.layers) > 4 * index // len(decoder.layers):
            report(f"quantized {index + 1} of {len(decoder.layers)} layers")
    _norm(weights, "norm", decoder.final_norm)
    if decoder.position_embedding is not None:
        weights["position"] = _float(decoder.position_embedding)
    if decoder.rope is not None:
        weights["cosines"], weights["sines"] = _float(decoder.rope[0]), _float(decoder.rope[1])
    return weights


def quantize(weights: dict[str, Array], name: str, matrix: torch.Tensor) -> None:
    """Add ``matrix`` [out, in] as ``name.codes`` [out, in], ``name.zero`` and ``name.scale``
    [out, 1]. Zero itself is always one of the 256 values."""
    wide = matrix.detach().float()
    low = wide.amin(dim=1, keepdim=True).clamp(max=0.0)
    high = wide.amax(dim=1, keepdim=True).clamp(min=0.0)
    scale = ((high - low) / 255).clamp(min=1e-10)
    zero = (-low / scale).round().clamp(0, 255)
    codes = ((wide / scale).round() + zero).clamp(0, 255)
    weights[f"{name}.codes"] = codes.to(torch.uint8).numpy()
    weights[f"{name}.zero"] = zero.to(torch.uint8).numpy()
    weights[f"{name}.scale"] = scale.numpy()


def _norm(weights: dict[str, Array], name: str, norm: Any) -> None:
    if norm is None:
        return
    weights[f"{name}.weight"] = _float(norm.weight)
    if isinstance(norm, LayerNorm):
        weights[f"{name}.bias"] = _float(norm.bias)


def _float(tensor: torch.Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().float().numpy())


# -- reading


def _load(directory: Path) -> Exported:
    try:
        facts = json.loads((directory / "model.json").read_text(encoding="utf-8"))
        weights = load_file(directory / "weights.safetensors")
        parts = tuple(
            {module: (rows[0], rows[1]) for module, rows in site.items()} for site in facts["parts"]
        )
        return Exported(
            Shape(**facts["shape"]),
            facts["vocabulary"],
            facts["context"],
            frozenset(facts["end_ids"]),
            parts,
            weights,
        )
    except OSError:
        raise
    except Exception as error:
        raise BaseModelUnavailable(
            f"{directory} is damaged ({error}): remove it, it is converted again at the next start"
        ) from error


# -- with an adapter


@torch.inference_mode()
def merged_model(
    adapter: LoraAdapter, decoder: Decoder, config: object, base: Exported
) -> Exported:
    """The int8 model of the ``decoder``'s exact weights, which are used up by this, with the
    adapter in them. What the adapter does not touch is ``base``'s, in memory once. Raises
    ValueError: see :func:`chatbot.engine.torch.merging.merge_into`."""
    merge_into(decoder, adapter)
    model = convert(decoder, config, lambda _: None)
    same = {name: base.weights[name] for name in model.weights if not _adapted(name)}
    return replace(model, weights=model.weights | same)


def _adapted(name: str) -> bool:
    return name.startswith("layers.") and name.endswith((".codes", ".zero", ".scale"))
