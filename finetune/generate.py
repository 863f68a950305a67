"""Greedy replies to many prompts at once, starting from keys and values computed before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chatbot.prompt import end_of_turn_ids


@dataclass(frozen=True, slots=True)
class Prompt:
    """Prompt ids, and for each layer the keys and values of all of them but the last
    ([1, heads, len(ids) - 1, head size] each); None where the model's cache cannot be cut."""

    ids: list[int]
    layers: list[tuple[Tensor, Tensor]] | None


@dataclass(frozen=True, slots=True)
class Reply:
    """``tokens`` without the end-of-turn token; ``stopped``: that token came."""

    text: str
    tokens: int
    stopped: bool


def take_prompt(cache: Any, ids: list[int]) -> Prompt:
    """A prompt out of the cache of a longer text that begins with ``ids``."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if not isinstance(cache, DynamicCache) or any(
        type(x) is not DynamicLayer for x in cache.layers
    ):
        return Prompt(ids, None)  # a sliding window, for example, has dropped the beginning
    last = len(ids) - 1
    # copies: a view would keep the whole dialogue's cache alive
    pairs = [(x.keys[:, :, :last].clone(), x.values[:, :, :last].clone()) for x in cache.layers]
    return Prompt(ids, pairs)


def write_replies(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], max_tokens: int
) -> list[Reply]:
    """The greedy reply to each prompt, at most ``max_tokens`` tokens."""
    ends = frozenset(end_of_turn_ids(tokenizer))
    together = [i for i, prompt in enumerate(prompts) if prompt.layers and len(prompt.ids) > 1]
    written: dict[int, list[int]] = {}
    if together:
        rows = _decode(model, [prompts[i] for i in together], ends, max_tokens)
        written.update(zip(together, rows, strict=True))
    for index, prompt in enumerate(prompts):
        if index not in written:
            written[index] = _decode_alone(model, prompt.ids, ends, max_tokens)
    return [_reply(written[index], tokenizer, ends) for index in range(len(prompts))]


def _reply(ids: list[int], tokenizer: Any, ends: frozenset[int]) -> Reply:
    stopped = bool(ids) and ids[-1] in ends
    words = ids[:-1] if stopped else ids
    return Reply(tokenizer.decode(words, skip_special_tokens=True), len(words), stopped)


def _decode(
    model: Any, prompts: Sequence[Prompt], ends: frozenset[int], max_tokens: int
) -> list[list[int]]:
    """All prompts in one batch, their keys and values padded on the left. Rows that ended leave
    the batch once they are half of it."""
    from transformers import DynamicCache

    device = model.device
    longest = max(len(prompt.ids) for prompt in prompts) - 1
    mask = torch.zeros((len(prompts), longest), dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        mask[row, longest - len(prompt.ids) + 1 :] = 1
    cache = DynamicCache()
    for layer in range(len(prompts[0].layers or [])):
        keys, values = (_stack(prompts, layer, part, longest) for part in (0, 1))
        cache.update(keys, values, layer)
    rows = list(range(len(prompts)))  # which prompt each row of the batch is
    written: list[list[int]] = [[] for _ in prompts]
    tokens = torch.tensor([[prompt.ids[-1]] for prompt in prompts], device=device)
    for _ in range(max_tokens):
        mask = torch.cat([mask, mask.new_ones((len(rows), 1))], dim=1)
        output = model(
            input_ids=tokens,
            cache=cache,
            attention_mask=mask,
            position_ids=mask.sum(dim=1, keepdim=True) - 1,
            use_cache=True,
        )
        tokens = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        for row, token in zip(rows, tokens[:, 0].tolist(), strict=True):
            if not (written[row] and written[row][-1] in ends):
                written[row].append(token)
        alive = [place for place, row in enumerate(rows) if written[row][-1] not in ends]
        if not alive:
            break
        if len(alive) <= len(rows) // 2:
            keep = torch.tensor(alive, device=device)
            cache.batch_select_indices(keep)
            tokens, mask = tokens[keep], mask[keep]
            rows = [rows[place] for place in alive]
    return written


def _stack(prompts: Sequence[Prompt], layer: int, part: int, longest: int) -> Tensor:
    """[prompts, heads, longest, head size], each row's values at its right end."""
    parts = [(prompt.layers or [])[layer][part] for prompt in prompts]
    _, heads, _, size = parts[0].shape
    stacked = parts[0].new_zeros((len(parts), heads, longest, size))
    for row, values in enumerate(parts):
        stacked[row, :, longest - values.shape[2] :] = values[0]
    return stacked


def _decode_alone(model: Any, ids: list[int], ends: frozenset[int], max_tokens: int) -> list[int]:
    written: list[int] = []
    cache, step = None, ids
    while len(written) < max_tokens and not (written and written[-1] in ends):
        inputs = torch.tensor([step], device=model.device)
        output = model(input_ids=inputs, cache=cache, use_cache=True)
        cache = output.cache
        step = [int(output.logits[0, -1].argmax())]
        written += step
    return written
