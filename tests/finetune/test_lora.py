"""LoRA arithmetic: our training step computes what peft computes; files load in peft."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from chatbot.errors import AdapterInvalid
from finetune.lora import attach, fused, load_adapter, logits_at, restore, save_adapter, trainable
from tests.finetune.models import chatml_tokenizer, plain_tokenizer, tiny_gpt2, tiny_llama

MODELS = {
    "llama": lambda: tiny_llama(chatml_tokenizer()),
    "gpt2": lambda: tiny_gpt2(plain_tokenizer()),
}


def tuned(name: str, dropout: float = 0.0) -> Any:
    """A tuned model whose B matrices are not zero, so that the adapter changes something."""
    model = attach(MODELS[name](), name, rank=4, alpha=8, dropout=dropout, seed=1)
    torch.manual_seed(5)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def loss_and_gradients(model: Any, ids: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in trainable(model)]


@pytest.mark.parametrize("name", MODELS)
def test_the_fused_step_equals_pefts(name: str) -> None:
    model = tuned(name).train()
    ids = torch.randint(0, 200, (2, 17), generator=torch.Generator().manual_seed(0))
    loss, gradients = loss_and_gradients(model, ids)
    with fused(model) as count:
        assert count == len(gradients) / 2
        fused_loss, fused_gradients = loss_and_gradients(model, ids)
    assert fused_loss == pytest.approx(loss, rel=1e-5)
    for expected, found in zip(gradients, fused_gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    again, _ = loss_and_gradients(model, ids)
    assert again == loss  # peft's own arithmetic is back


def test_fused_steps_in_bfloat16_keep_float32_weights_and_gradients() -> None:
    model = attach(MODELS["llama"]().bfloat16(), "llama", rank=4, alpha=8, dropout=0, seed=1)
    ids = torch.randint(0, 200, (1, 9))
    with fused(model.train()):
        _, gradients = loss_and_gradients(model, ids)
    assert {parameter.dtype for parameter in trainable(model)} == {torch.float32}
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


def test_dropout_is_left_to_peft() -> None:
    with fused(tuned("llama", dropout=0.1)) as count:
        assert count == 0


def test_every_linear_layer_but_the_head_is_tuned() -> None:
    assert tuned_modules("llama") == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert tuned_modules("gpt2") == {"c_attn", "c_proj", "c_fc"}


def tuned_modules(name: str) -> set[str]:
    parameters = tuned(name).named_parameters()
    return {path.split(".")[-4] for path, parameter in parameters if parameter.requires_grad}


@pytest.mark.parametrize("name", MODELS)
def test_merged_weights_are_w_plus_scaling_ba(name: str) -> None:
    model = tuned(name).eval()
    layer = next(m for m in model.modules() if type(m) is peft.tuners.lora.layer.Linear)
    before = layer.base_layer.weight.detach().clone()
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    change = 2.0 * b.detach() @ a.detach()  # alpha / rank
    ids = torch.arange(12)[None]
    logits = model(input_ids=ids).logits
    merged = model.merge_and_unload()
    change = change.T if name == "gpt2" else change
    torch.testing.assert_close(layer.base_layer.weight, before + change)
    torch.testing.assert_close(merged(input_ids=ids).logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_saved_adapters_load_in_peft(name: str, tmp_path: Path) -> None:
    model = tuned(name).eval()
    save_adapter(model, tmp_path / "adapter")
    ids = torch.arange(12)[None]
    loaded = load_adapter(MODELS[name](), tmp_path / "adapter")
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    fresh = attach(MODELS[name](), name, rank=4, alpha=8, dropout=0, seed=9).eval()
    restore(fresh, tmp_path / "adapter")
    torch.testing.assert_close(fresh(input_ids=ids).logits, model(input_ids=ids).logits)
    assert peft.LoraConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path == name


def test_an_adapter_that_does_not_fit_is_named(tmp_path: Path) -> None:
    save_adapter(tuned("llama"), tmp_path / "adapter")
    with pytest.raises(AdapterInvalid, match="adapter"):
        load_adapter(MODELS["gpt2"](), tmp_path / "adapter")
    with pytest.raises(AdapterInvalid, match="does not load"):
        load_adapter(MODELS["llama"](), tmp_path / "nothing")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"junk")
    with pytest.raises(AdapterInvalid, match="does not fit"):
        restore(tuned("llama"), tmp_path / "adapter")


@pytest.mark.parametrize("name", MODELS)
def test_logits_only_where_asked(name: str) -> None:
    model = MODELS[name]().eval()
    ids = torch.arange(20).reshape(2, 10)
    where = torch.rand(2, 10, generator=torch.Generator().manual_seed(3)) > 0.6
    with torch.inference_mode():
        everywhere = model(input_ids=ids).logits
        with logits_at(model, where):
            some = model(input_ids=ids).logits
    torch.testing.assert_close(some[0], everywhere[where])
