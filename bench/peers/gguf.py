"""A Llama model as a GGUF file in Q8_0, for llama.cpp."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import quantize

Array = npt.NDArray[Any]
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OTHER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
OWN_FIELDS = ("general.architecture", "general.file_type", "general.quantization_version")


def write_q8(model: Path, original: Path, target: Path) -> None:
    """The weights of the Hugging Face directory ``model`` with all that ``original``, a GGUF file
    of the same architecture, says of shape and tokenizer."""
    from safetensors.torch import load_file

    described = GGUFReader(original)
    writer = GGUFWriter(target, "llama")
    _copy_fields(described, writer)
    heads = _number(described, "llama.attention.head_count")
    kv_heads = _number(described, "llama.attention.head_count_kv")
    for name, tensor in load_file(model / "model.safetensors").items():
        values: Array = tensor.float().numpy()
        if name.endswith("q_proj.weight"):
            values = _interleaved(values, heads)
        elif name.endswith("k_proj.weight"):
            values = _interleaved(values, kv_heads)
        _add(writer, gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """Raises KeyError: not a tensor of a Llama model without biases."""
    path = name.removesuffix(".weight")
    if path in OTHER_NAMES:
        return f"{OTHER_NAMES[path]}.weight"
    _, _, index, rest = path.split(".", 3)
    return f"blk.{index}.{LAYER_NAMES[rest]}.weight"


def _add(writer: Any, name: str, values: Array) -> None:
    if values.ndim == 1:
        writer.add_tensor(name, values)
    else:
        kind = GGMLQuantizationType.Q8_0
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)


def _interleaved(values: Array, heads: int) -> Array:
    """llama.cpp turns neighbouring pairs of a head's numbers, transformers the two halves."""
    rows, columns = values.shape
    halves = values.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def _copy_fields(source: Any, writer: Any) -> None:
    for key, field in source.fields.items():
        if key.startswith("GGUF.") or key in OWN_FIELDS:
            continue
        kind = field.types[0]
        if kind == GGUFValueType.ARRAY:
            writer.add_key_value(key, field.contents(), kind, sub_type=field.types[-1])
        else:
            writer.add_key_value(key, field.contents(), kind)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(2)


def _number(source: Any, key: str) -> int:
    return int(source.fields[key].contents())
