"""LoRA (arXiv 2106.09685) on a causal language model: attach, compute, save, load.

peft makes the adapter and its files. For training, :func:`fused` replaces the arithmetic of its
layers by one that gives the same result with a fraction of the memory traffic, which is what a
CPU waits for: the low-rank product is added in place, nothing but the input and the rank-wide
projection is kept for the backward pass, and the input's two gradients are never stored apart.
The adapter's weights stay float32; they are rounded to the model's type where they are used.
"""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chatbot.errors import AdapterInvalid, TrainingError
from finetune.storage import write_file

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def attach(model: Any, base_name: str, rank: int, alpha: float, dropout: float, seed: int) -> Any:
    """A peft model with a fresh adapter on every linear layer but the output head.

    Raises:
        TrainingError: the model has no layer that takes an adapter.
    """
    import peft
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(seed)  # the adapter's first weights are random
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks the model for a property that transformers is renaming
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        try:
            tuned = peft.get_peft_model(model, config)
        except ValueError as error:
            raise TrainingError(f"{base_name} takes no LoRA adapter: {error}") from error
    tuned.peft_config["default"].base_model_name_or_path = base_name
    return tuned


def save_adapter(tuned: Any, directory: Path) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` (float32) as peft reads
    them. Raises OSError."""
    import peft
    from safetensors.torch import save

    tensors = peft.get_peft_model_state_dict(tuned, save_embedding_layers=False)
    directory.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    write_file(directory / WEIGHTS, save(plain, metadata={"format": "pt"}))
    config = tuned.peft_config["default"].to_dict()
    config |= {
        "inference_mode": True,
        "target_modules": sorted(config["target_modules"]),
        "peft_type": "LORA",
    }
    text = json.dumps({k: _plain(v) for k, v in config.items()}, indent=2, sort_keys=True)
    write_file(directory / CONFIG, text.encode())


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value


def restore(tuned: Any, directory: Path) -> None:
    """Put saved weights into the adapter of ``tuned``.

    Raises:
        AdapterInvalid: unreadable, or of another shape.
    """
    import peft
    from safetensors.torch import load_file

    try:
        result = peft.set_peft_model_state_dict(tuned, load_file(directory / WEIGHTS))
    except Exception as error:  # safetensors has errors of its own, torch raises RuntimeError
        raise AdapterInvalid(f"{directory} does not fit the base model: {error}") from error
    unexpected = list(result.unexpected_keys)
    if unexpected:
        raise AdapterInvalid(
            f"{directory} has weights for layers that are not there: {unexpected[0]}"
        )


def load_adapter(model: Any, directory: Path) -> Any:
    """A peft model of ``model`` with the saved adapter, for evaluation.

    Raises:
        AdapterInvalid: not an adapter, or of another base model.
    """
    import peft

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
            )
            return peft.PeftModel.from_pretrained(model, str(directory)).eval()
    except Exception as error:
        raise AdapterInvalid(f"{directory} does not load as an adapter: {error}") from error


def trainable(tuned: Any) -> list[nn.Parameter]:
    return [parameter for parameter in tuned.parameters() if parameter.requires_grad]


# -- the arithmetic of a training step


class _LoraProduct(torch.autograd.Function):
    """``x W + b + s (x A') B'``.

    Shapes: x [tokens, in] · weight [out, in], or [in, out] where ``transposed`` (Conv1D) ·
    a [rank, in] · b [out, rank] · result [tokens, out].
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
        transposed: bool,
    ) -> Tensor:
        matrix = weight if transposed else weight.t()  # [in, out]
        result = x @ matrix if bias is None else torch.addmm(bias, x, matrix)
        low_a, low_b = a.to(x.dtype), b.to(x.dtype)
        narrow = x @ low_a.t()  # [tokens, rank]
        result.addmm_(narrow, low_b.t(), alpha=scaling)
        ctx.save_for_backward(x, matrix, low_a, low_b, narrow)
        ctx.scaling = scaling
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix, a, b, narrow = ctx.saved_tensors
        back = (grad @ b).mul_(ctx.scaling)  # [tokens, rank]
        grad_a = (back.t() @ x).float()
        grad_b = (grad.t() @ narrow).float().mul_(ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ matrix.t()).addmm_(back, a)
        return grad_x, None, None, grad_a, grad_b, None, None


def _fused_forward(layer: Any, x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    base = layer.base_layer
    flat = x.reshape(-1, x.shape[-1])
    result = _LoraProduct.apply(  # type: ignore[no-untyped-call]
        flat,
        base.weight,
        base.bias,
        layer.lora_A["default"].weight,
        layer.lora_B["default"].weight,
        layer.scaling["default"],
        layer.fan_in_fan_out,
    )
    return result.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]


@contextmanager
def fused(tuned: Any) -> Iterator[int]:
    """Within the block, the adapter's layers compute as described above, where they are plain
    LoRA without dropout; yields how many do."""
    from peft.tuners.lora.layer import Linear

    layers = [
        module
        for module in tuned.modules()
        if type(module) is Linear
        and not module.lora_variant
        and not module.lora_bias["default"]
        and isinstance(module.lora_dropout["default"], nn.Identity)
        and not module.merged
    ]
    for layer in layers:
        layer.forward = partial(_fused_forward, layer)
    try:
        yield len(layers)
    finally:
        for layer in layers:
            del layer.forward


@contextmanager
def logits_at(model: Any, where: Tensor) -> Iterator[None]:
    """Within the block, the model computes logits only at the positions in ``where``
    ([samples, length] bool) and gives them as [1, positions, vocabulary]: the head is the widest
    layer, and four of five positions of a dialogue are not the agent's."""
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _head, inputs: (inputs[0][where].unsqueeze(0),))
    try:
        yield
    finally:
        hook.remove()
