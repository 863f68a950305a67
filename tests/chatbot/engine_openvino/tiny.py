"""Tiny random base models as directories, and engines on them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from chatbot.engine.openvino.engine import OpenVinoEngine
from chatbot.engine.torch.draft_policy import DraftPolicy
from chatbot.settings import Settings

END = "<|end|>"
VOCABULARY = 257
_LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # large enough for outputs that depend on the prompt
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**_LLAMA_LIKE),
    "llama-bias-tied": lambda: LlamaConfig(
        **_LLAMA_LIKE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "linear-rope": lambda: LlamaConfig(
        **_LLAMA_LIKE,
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    ),
    "qwen2": lambda: Qwen2Config(**_LLAMA_LIKE),
    "qwen3": lambda: Qwen3Config(**_LLAMA_LIKE, head_dim=64),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=128,
        n_layer=2,
        n_head=4,
        n_positions=512,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    ),
}


def tiny_model(name: str = "llama") -> Any:
    """A random model in float32, the same one for the same name."""
    torch.manual_seed(20)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]()).float().eval()
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):  # they start at zero, where a forgotten bias would not show
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte, and an end token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def save_tiny(directory: Path, name: str = "llama") -> Path:
    tiny_model(name).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def tiny_settings(base: Path, **changes: Any) -> Settings:
    given: dict[str, Any] = {
        "engine": "openvino",
        "base_model": str(base),
        "data_dir": base.parent / "data",
        "dtype": "float32",
        "engine_threads": 1,
        "kv_cache_tokens": 4096,
        "prefill_chunk_tokens": 64,
        "max_context_tokens": 512,
        "max_running": 8,
    }
    return Settings(**(given | changes))


@asynccontextmanager
async def running(
    base: Path, policy: DraftPolicy | None = None, **changes: Any
) -> AsyncIterator[OpenVinoEngine]:
    """A started engine on a saved model; closed at the end."""
    engine = OpenVinoEngine(tiny_settings(base, **changes), policy)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()
