"""Tiny random models and tokenizers, built on the spot: no network, no weights in git."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = [
    "Hello, how can I help you today? Your order has been shipped and arrives on Friday.",
    "I would like to return my shoes, please. What is your order number? Thank you, goodbye!",
    "Where is my parcel? system user assistant tool System User Assistant Lookup",
]


def byte_bpe(specials: list[str]) -> RawTokenizer:
    """A byte-level BPE tokenizer with a few merges; any text survives a round trip."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TEXT, trainer)
    return raw


def chatml_tokenizer() -> Any:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        eos_token="<|im_end|>",
        bos_token="<|im_start|>",
        pad_token="<|im_end|>",
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def plain_tokenizer() -> Any:
    """Like GPT-2's: one special token, no chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_bpe(["<|endoftext|>"]),
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
    )


def tiny_llama(tokenizer: Any, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,  # wide enough that an adapter can steer the frozen head
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def tiny_gpt2(tokenizer: Any, seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=512,
        initializer_range=0.2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(config)


def save_llama(directory: Path, seed: int = 0) -> Path:
    """A base model directory: tiny random Llama with a ChatML tokenizer."""
    tokenizer = chatml_tokenizer()
    tiny_llama(tokenizer, seed).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_gpt2(directory: Path, seed: int = 0) -> Path:
    """A base model directory: tiny random GPT-2 (Conv1D layers), no chat template."""
    tokenizer = plain_tokenizer()
    tiny_gpt2(tokenizer, seed).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
