"""Evaluation: perplexity, greedy replies and the numbers made of them."""

import math
from typing import Any

import pytest
import torch

from chatbot.errors import RunInterrupted
from chatbot.prompt import encode_dialogue, encode_prompt
from finetune.evaluate import MAX_REPLY_TOKENS, Turn, evaluate_model, sample_turns
from finetune.generate import Prompt, take_prompt, write_replies
from finetune.lora import attach
from finetune.progress import Progress
from finetune.transcripts import Dialogue
from finetune.transcripts.openai_chat import dialogue_from
from tests.finetune.data import dialogue
from tests.finetune.models import chatml_tokenizer, plain_tokenizer, tiny_gpt2, tiny_llama

MODELS = {
    "llama": (chatml_tokenizer, lambda tokenizer: tiny_llama(tokenizer).eval()),
    "gpt2": (plain_tokenizer, lambda tokenizer: tiny_gpt2(tokenizer).eval()),
}


def dialogues(count: int) -> list[Dialogue]:
    return [dialogue_from(dialogue(number)) for number in range(count)]


def quiet(_progress: Progress) -> None:
    pass


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    make_tokenizer, make_model = MODELS[request.param]
    tokenizer = make_tokenizer()
    return tokenizer, make_model(tokenizer)


def test_perplexity_is_that_of_the_models_own_logits(pair: tuple[Any, Any]) -> None:
    tokenizer, model = pair
    held_out = dialogues(4)
    nats: dict[str, list[float]] = {"template": [], "custom": []}
    for item in held_out:
        encoded = encode_dialogue(list(item.messages), tokenizer, 10_000)
        with torch.inference_mode():
            logs = model(torch.tensor([encoded.ids])).logits[0].log_softmax(-1)
        kinds = {turn["i"]: turn["kind"] for turn in item.meta["agent_turns"]}
        for span in encoded.spans:
            for i in range(span.start, span.end):
                nats[kinds[span.message]].append(-logs[i - 1, encoded.ids[i]].item())
    metrics, replies = evaluate_model("v", model, tokenizer, held_out, [], quiet)
    both = nats["template"] + nats["custom"]
    assert metrics.perplexity == pytest.approx(math.exp(sum(both) / len(both)), rel=1e-4)
    for kind, found in (
        ("template", metrics.perplexity_template),
        ("custom", metrics.perplexity_custom),
    ):
        assert found == pytest.approx(math.exp(sum(nats[kind]) / len(nats[kind])), rel=1e-4)
    assert metrics.perplexity_turns == sum(d.agent_turns for d in held_out)
    assert (replies, metrics.turns, metrics.stop_rate, metrics.chrf) == ({}, 0, None, None)


def test_replies_are_those_of_generate(pair: tuple[Any, Any]) -> None:
    tokenizer, model = pair
    held_out = dialogues(12)
    turns = sample_turns(held_out, 20)
    metrics, replies = evaluate_model("v", model, tokenizer, held_out, turns, quiet)
    assert set(replies) == set(turns)
    for turn in turns:
        ids = encode_prompt(
            list(held_out[turn.dialogue].messages[: turn.message]), tokenizer, 10**6
        )
        expected = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=MAX_REPLY_TOKENS,
            do_sample=False,
        )[0, len(ids) :].tolist()
        stopped = expected[-1] == tokenizer.eos_token_id
        words = expected[:-1] if stopped else expected
        assert replies[turn].text == tokenizer.decode(words, skip_special_tokens=True)
        assert (replies[turn].stopped, replies[turn].tokens) == (stopped, len(words))
    assert metrics.stop_rate == sum(r.stopped for r in replies.values()) / 20
    assert metrics.mean_tokens == sum(r.tokens for r in replies.values()) / 20


def test_a_cache_that_cannot_be_cut_gives_the_same_replies(pair: tuple[Any, Any]) -> None:
    tokenizer, model = pair
    prompts = [encode_prompt(list(d.messages[:3]), tokenizer, 10**6) for d in dialogues(3)]
    with torch.inference_mode():
        cut = [take_prompt(model(torch.tensor([ids])).cache, ids) for ids in prompts]
        assert all(prompt.layers for prompt in cut)
        together = write_replies(model, tokenizer, cut, 20)
        alone = write_replies(model, tokenizer, [Prompt(ids, None) for ids in prompts], 20)
    assert together == alone


class Scripted(torch.nn.Module):
    """A model that always says what it was told to: knows the right reply to every prompt."""

    def __init__(self, model: Any, script: dict[int, int]) -> None:
        super().__init__()
        self.inner, self.script = model, script
        self.config, self.device = model.config, model.device

    def get_output_embeddings(self) -> Any:
        return self.inner.get_output_embeddings()

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        output = self.inner(input_ids=input_ids, **options)
        if input_ids.shape[1] == 1:
            for row, token in enumerate(input_ids[:, 0].tolist()):
                output.logits[row, -1, self.script[token]] = 1e4
        return output


def test_a_right_reply_counts_as_right() -> None:
    tokenizer = chatml_tokenizer()
    item = dialogue_from(
        {
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "abc"},
            ],
            "meta": {"agent_turns": [{"i": 1, "kind": "template"}]},
        }
    )
    start = tokenizer.encode("\n")[0]
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    assert tokenizer.encode("abc") == [a, b, c]
    script = {start: a, a: b, b: c, c: tokenizer.eos_token_id}
    model = Scripted(tiny_llama(tokenizer).eval(), script)
    metrics, replies = evaluate_model("v", model, tokenizer, [item], [Turn(0, 1)], quiet)
    assert replies[Turn(0, 1)].text == "abc"
    assert (metrics.exact_match, metrics.exact_match_template) == (1.0, 1.0)
    assert metrics.exact_match_custom is None
    assert (metrics.stop_rate, metrics.mean_tokens) == (1.0, 3.0)
    assert metrics.chrf == pytest.approx(100)
    never_ends = Scripted(tiny_llama(tokenizer).eval(), {**script, c: a})
    metrics, _ = evaluate_model("v", never_ends, tokenizer, [item], [Turn(0, 1)], quiet)
    assert (metrics.exact_match, metrics.stop_rate) == (0.0, 0.0)
    assert metrics.mean_tokens == MAX_REPLY_TOKENS


def test_an_adapter_changes_the_numbers() -> None:
    tokenizer = chatml_tokenizer()
    tuned = attach(tiny_llama(tokenizer), "tiny", rank=4, alpha=8, dropout=0, seed=0)
    bare, _ = evaluate_model("b", tiny_llama(tokenizer).eval(), tokenizer, dialogues(3), [], quiet)
    fresh, _ = evaluate_model("f", tuned, tokenizer, dialogues(3), [], quiet)
    assert fresh.perplexity == pytest.approx(bare.perplexity, rel=1e-5)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    changed, _ = evaluate_model("c", tuned, tokenizer, dialogues(3), [], quiet)
    assert abs(changed.perplexity - bare.perplexity) > 0.01  # type: ignore[operator]


def test_the_sample_of_turns_is_stable_and_spread() -> None:
    items = dialogues(60)
    turns = sample_turns(items, 40)
    assert turns == sample_turns(items, 60)[:40]
    assert len({turn.dialogue for turn in turns}) > 20
    assert len(sample_turns(items, 10**6)) == sum(item.agent_turns for item in items)
    assert all(items[t.dialogue].messages[t.message]["role"] == "assistant" for t in turns)


def test_turns_beyond_the_context_are_counted() -> None:
    tokenizer = plain_tokenizer()
    long = {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "word " * 600},
            {"role": "assistant", "content": "too far"},
        ]
    }
    item = dialogue_from(long)
    turns = sample_turns([item], 10)
    metrics, _ = evaluate_model("v", tiny_gpt2(tokenizer).eval(), tokenizer, [item], turns, quiet)
    assert (metrics.perplexity_turns, metrics.turns, metrics.turns_left_out) == (1, 1, 1)
    assert (metrics.perplexity_template, metrics.exact_match_template) == (None, None)


def test_progress_and_stopping() -> None:
    tokenizer = chatml_tokenizer()
    model = tiny_llama(tokenizer).eval()
    seen: list[Progress] = []
    evaluate_model("base", model, tokenizer, dialogues(3), [], seen.append)
    assert [(p.phase, p.step, p.total_steps) for p in seen] == [
        ("evaluate", 1, 3),
        ("evaluate", 2, 3),
        ("evaluate", 3, 3),
    ]
    with pytest.raises(RunInterrupted):
        evaluate_model("base", model, tokenizer, dialogues(3), [], quiet, lambda: True)
