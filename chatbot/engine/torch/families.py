"""From a transformers model to a :class:`~chatbot.engine.torch.models.Decoder`, by family.

The transformers model is taken apart layer by layer (its modules end on the meta device), so that
the weights are in memory about once and not twice.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from chatbot.engine.torch.models import Decoder, Layer, LayerNorm, Linear, RmsNorm
from chatbot.errors import BaseModelUnavailable, SettingsError

# rope types whose frequencies do not depend on the length of the text
STATIC_ROPE = ("default", "linear", "llama3", "yarn")


def build_decoder(model: Any, max_context: int, extra_end_ids: frozenset[int]) -> Decoder:
    """The decoder of a transformers causal language model, which is used up by this.

    ``max_context`` bounds the positions; ``extra_end_ids`` join the model's own end tokens.

    Raises:
        BaseModelUnavailable: the family, or a feature of this model, is not supported.
        SettingsError: ``max_context`` reaches beyond the model's attention window.
    """
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise BaseModelUnavailable(
            f"the torch engine has no forward pass for model type {kind!r}; "
            f"supported: {', '.join(sorted(FAMILIES))}"
        )
    _check_window(model.config, max_context)
    context = min(max_context, model.config.max_position_embeddings)
    with torch.inference_mode():
        decoder = FAMILIES[kind](model, context)
    decoder.end_ids = _end_ids(model) | extra_end_ids
    return decoder


def _check_window(config: Any, max_context: int) -> None:
    """Attention here is over the whole context, so a sliding window must never begin to slide."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None) or ["sliding_attention"]
    if window is not None and "sliding_attention" in types and max_context > window:
        raise SettingsError(
            f"the base model attends to its last {window} tokens only, which the torch engine "
            f"does not do: set FRONTDESK_MAX_CONTEXT_TOKENS to at most {window}"
        )


def _end_ids(model: Any) -> frozenset[int]:
    """Every end token the model names: one, several or none, in either of its configurations."""
    found: set[int] = set()
    for config in (model.config, getattr(model, "generation_config", None)):
        ids = getattr(config, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or [])
    return frozenset(found)


def _fuse(*modules: tuple[str, Any]) -> Linear:
    """One Linear of several nn.Linear with the same input; names are module paths."""
    parts: dict[str, slice] = {}
    start = 0
    for name, module in modules:
        parts[name] = slice(start, start + module.weight.shape[0])
        start += module.weight.shape[0]
    weight = torch.cat([module.weight for _, module in modules])
    biases = [module.bias for _, module in modules]
    if all(bias is None for bias in biases):
        return Linear(weight.detach(), None, parts)
    filled = [
        module.weight.new_zeros(module.weight.shape[0]) if module.bias is None else module.bias
        for _, module in modules
    ]
    return Linear(weight.detach(), torch.cat(filled).detach(), parts)


def _llama(model: Any, context: int) -> Decoder:
    """Llama, SmolLM2, Mistral, Qwen2 (biases on q, k, v) and Qwen3 (norm on each q and k head)."""
    config, inner = model.config, model.model
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layers = []
    for index in range(config.num_hidden_layers):
        layers.append(_llama_layer(inner.layers[index], f"model.layers.{index}", head_dim))
        inner.layers[index].to("meta")
    return Decoder(
        embedding=inner.embed_tokens.weight.detach(),
        layers=layers,
        final_norm=_rms(inner.norm),
        head=model.lm_head.weight.detach(),
        activation=ACT2FN[config.hidden_act],
        gated=True,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        context=context,
        rope=rope_table(config, head_dim, context).to(inner.embed_tokens.weight),
    )


def _llama_layer(source: Any, path: str, head_dim: int) -> Layer:
    attention, mlp = source.self_attn, source.mlp
    has_qk_norm = hasattr(attention, "q_norm")
    return Layer(
        attention_norm=_rms(source.input_layernorm),
        qkv=_fuse(
            *(
                (f"{path}.self_attn.{n}", getattr(attention, n))
                for n in ("q_proj", "k_proj", "v_proj")
            )
        ),
        out=_fuse((f"{path}.self_attn.o_proj", attention.o_proj)),
        mlp_norm=_rms(source.post_attention_layernorm),
        up=_fuse(*((f"{path}.mlp.{n}", getattr(mlp, n)) for n in ("gate_proj", "up_proj"))),
        down=_fuse((f"{path}.mlp.down_proj", mlp.down_proj)),
        scale=head_dim**-0.5,
        q_norm=_rms(attention.q_norm) if has_qk_norm else None,
        k_norm=_rms(attention.k_norm) if has_qk_norm else None,
    )


def _rms(source: Any) -> RmsNorm:
    # a copy: the source's parameter goes to the meta device with its layer
    return RmsNorm(source.weight.detach().clone(), source.variance_epsilon)


def rope_table(config: Any, head_dim: int, context: int) -> torch.Tensor:
    """Cosines and sines [2, context, head_dim] in float32 for the model's rotary embedding.

    Raises:
        BaseModelUnavailable: a rope type whose frequencies change with the length.
    """
    kind = config.rope_parameters["rope_type"]
    if kind not in STATIC_ROPE or config.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise BaseModelUnavailable(
            f"the torch engine does not know this model's rotary embedding "
            f"({config.rope_parameters}); supported types: {', '.join(STATIC_ROPE)}"
        )
    if kind == "default":
        powers = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
        frequencies, factor = 1.0 / (config.rope_parameters["rope_theta"] ** powers), 1.0
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    angles = torch.arange(context, dtype=torch.float)[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return torch.stack((angles.cos(), angles.sin())) * factor


def _gpt2(model: Any, context: int) -> Decoder:
    config, inner = model.config, model.transformer
    if config.add_cross_attention:
        raise BaseModelUnavailable(
            "the torch engine has no cross-attention (GPT-2 with an encoder)"
        )
    layers = []
    for index in range(config.n_layer):
        layers.append(_gpt2_layer(inner.h[index], f"transformer.h.{index}"))
        inner.h[index].to("meta")
    return Decoder(
        embedding=inner.wte.weight.detach(),
        layers=layers,
        final_norm=_layer_norm(inner.ln_f),
        head=model.lm_head.weight.detach(),
        activation=ACT2FN[config.activation_function],
        gated=False,
        heads=config.n_head,
        kv_heads=config.n_head,
        head_dim=config.n_embd // config.n_head,
        context=context,
        position_embedding=inner.wpe.weight.detach()[:context],
    )


def _gpt2_layer(source: Any, path: str) -> Layer:
    return Layer(
        attention_norm=_layer_norm(source.ln_1),
        qkv=_conv1d(f"{path}.attn.c_attn", source.attn.c_attn),
        out=_conv1d(f"{path}.attn.c_proj", source.attn.c_proj),
        mlp_norm=_layer_norm(source.ln_2),
        up=_conv1d(f"{path}.mlp.c_fc", source.mlp.c_fc),
        down=_conv1d(f"{path}.mlp.c_proj", source.mlp.c_proj),
        scale=source.attn.scaling,
    )


def _conv1d(path: str, module: Any) -> Linear:
    """transformers' Conv1D keeps its weight as [in, out]."""
    weight = module.weight.detach().t().contiguous()
    return Linear(weight, module.bias.detach().clone(), {path: slice(0, weight.shape[0])})


def _layer_norm(source: Any) -> LayerNorm:
    return LayerNorm(source.weight.detach().clone(), source.bias.detach().clone(), source.eps)


FAMILIES: dict[str, Callable[[Any, int], Decoder]] = {
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "gpt2": _gpt2,
}
