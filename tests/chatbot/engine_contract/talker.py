"""A tiny model that knows one text by heart, so that every runtime must say exactly that.

Each token has one successor: the head's row of a token is the embedding of the token before it,
and attention and MLP add nothing. After its last token comes the end, after the end the first
again. Among its tokens are the single bytes of characters outside ASCII.
"""

from itertools import pairwise
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

END = "<|end|>"
WORDS = ("Hello", " there", ", your", " parcel", " left", " today", ": na")
TEXT = "Hello there, your parcel left today: naé 日👍"  # no byte twice after the words
VOCABULARY = 257 + len(WORDS)
CONTEXT = 512
SHARPNESS = 40.0  # of the right token's logit: far above what rounding to int8 changes


def talker_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, an end, and some words."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    found.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    return found


def script() -> list[int]:
    """The ids of the text."""
    ids: list[int] = talker_tokenizer().encode(TEXT, add_special_tokens=False)
    assert len(set(ids)) == len(ids)
    return ids


def save_talker(directory: Path) -> Path:
    """Write the model as any base model's directory."""
    tokenizer, ids = talker_tokenizer(), script()
    end, (second,) = tokenizer.eos_token_id, tokenizer.encode("?", add_special_tokens=False)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for layer in model.model.layers:  # almost nothing: all zeros have no scale to quantize by
            layer.self_attn.o_proj.weight.normal_(std=1e-4)
            layer.mlp.down_proj.weight.normal_(std=1e-4)
        known = torch.nn.functional.normalize(torch.randn(VOCABULARY, 128), dim=-1)
        model.model.embed_tokens.weight.copy_(known)
        head = 1e-3 * torch.randn(VOCABULARY, 128)
        for token, following in pairwise([end, *ids, end]):
            head[following] += SHARPNESS / 128**0.5 * known[token]
            head[second] += 0.5 * SHARPNESS / 128**0.5 * known[token]
        model.lm_head.weight.copy_(head)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_adapter(base: Path, directory: Path, seed: int) -> Path:
    """A PEFT adapter under which the model says something else."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    tuned = get_peft_model(
        model,
        LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["down_proj"]),
    )
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=1.0)
    tuned.save_pretrained(directory)
    return directory
