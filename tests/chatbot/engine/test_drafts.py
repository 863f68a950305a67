"""Drafts in the whole engine: what is written does not depend on them, only the steps it takes."""

import asyncio
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbot.engine.interface import GenerationRequest, SamplingParams
from chatbot.engine.torch.draft_policy import Chance, Draft, DraftPolicy
from chatbot.engine.torch.drafts import OwnText, ReplyDrafter
from chatbot.engine.torch.sampling import Row, TokenChooser, choose_tokens, rows_of, verify
from chatbot.engine.torch.scheduler import Work
from chatbot.engine.torch.sequence import Sequence
from tests.chatbot.engine.helpers import (
    END,
    EagerDrafts,
    ScriptedRunner,
    collect,
    drafts,
    generate,
    request,
    running,
    tiny_model,
    tokens_of,
)
from tests.chatbot.engine.test_adapters import make_adapter

WORDS = [b"your order ", b"is on its way ", b"we will send ", b"a new one ", b"thank you "]


def prompts(count: int) -> Iterator[list[int]]:
    """Of repeated words, so that there is something to draft from."""
    randoms = random.Random(5)
    for number in range(count):
        words = randoms.choices(WORDS, k=randoms.randrange(2, 12))
        yield [number, *b"".join(words)]


# -- where drafts come from


def test_own_text_is_found_by_the_longest_match_the_latest_winning() -> None:
    own = OwnText()
    text = [1, 2, 3, 4, 9, 2, 3, 5, 9, 1, 2, 3]
    assert own.draft(text, 2) == ([4, 9], 3)
    text += [9, 2, 3]
    assert own.draft(text, 3) == ([5, 9, 1], 3)
    assert own.draft([7, 8], 3) == ([], 0)
    assert OwnText().draft([7], 3) == ([], 0)


def test_a_repetition_is_continued_beyond_the_end() -> None:
    assert OwnText().draft([1, 2, 1, 2], 5) == ([1, 2, 1, 2, 1], 2)


def test_the_end_of_a_reply_is_not_drafted_and_the_token_after_a_draft_has_room() -> None:
    drafter = ReplyDrafter(8, EagerDrafts())
    text = (1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2)
    for options, wanted in [
        ({"max_tokens": 50}, (3, 4, 5, 6, 7, 8, 9, 1)),
        ({"max_tokens": 50, "end_ids": frozenset([6])}, (3, 4, 5)),
        ({"max_tokens": 4}, (3, 4, 5)),
    ]:
        sequence = Sequence("r", text, **options)  # type: ignore[arg-type]
        assert drafter.plan([sequence], 1)[sequence].tokens == wanted
    ends_at_once = Sequence("r", text, 50, frozenset([3]))
    last = Sequence("r", text, 1)
    assert drafter.plan([ends_at_once, last], 2) == {}


# -- greedy replies are the same


async def test_greedy_replies_are_those_of_generate_while_everything_mixes(
    tmp_path: Path,
) -> None:
    """Drafts from prompts and taught replies, right and wrong, beside chunked prompts, shared
    prefixes, preemptions and adapters: token by token what one reply alone gives."""
    model = tiny_model()
    asked = list(prompts(16))
    wanted = [generate(model, prompt, 40) for prompt in asked]
    names: list[str | None] = [None, "v1", "v2"]
    tight: dict[str, Any] = {"kv_cache_tokens": 1024, "max_running": 16}
    async with running(model, max_draft_tokens=0) as plain:
        for name in ("v1", "v2"):
            await plain.load_adapter(name, make_adapter(tmp_path / name, seed=int(name[1])))
        tuned = {
            name: [
                await tokens_of(plain, request(p, name, max_tokens=40, ignore_eos=True))
                for p in asked[:6]
            ]
            for name in ("v1", "v2")
        }
    async with running(model, policy=EagerDrafts(), prefill_chunk_tokens=32, **tight) as engine:
        for name in ("v1", "v2"):
            await engine.load_adapter(name, tmp_path / name)
        for tokens in wanted[::2]:  # the other half is only guessed at
            engine.teach("site", tokens, None)
            engine.teach("site", [*tokens[:7], 1, 2, 3, 4, 5], None)

        async def ask(prompt: list[int], name: str | None) -> list[int]:
            params = SamplingParams(max_tokens=40, ignore_eos=True)
            return await tokens_of(
                engine,
                GenerationRequest(
                    f"{name} {prompt[0]}", tuple(prompt), params, name, draft_scopes=("site",)
                ),
            )

        jobs = [(p, name) for name in names for p in (asked if name is None else asked[:6])]
        replies = await asyncio.gather(*(ask(p, name) for p, name in jobs))
        drafted, accepted = drafts(engine)
        stats = engine.stats()
    for (prompt, name), reply in zip(jobs, replies, strict=True):
        expected = (wanted if name is None else tuned[name])[prompt[0]]
        assert reply == expected, (prompt[0], name)
    assert stats.preemptions > 0
    assert stats.blocks_used == 0
    assert {count.source: count.accepted > 0 for count in stats.drafts} == {
        "prompt": True,
        "replies": True,
    }
    assert 0 < accepted < drafted


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
async def test_other_families_write_the_same_with_drafts(name: str) -> None:
    model = tiny_model(name)
    asked = list(prompts(6))
    wanted = [generate(model, prompt, 30) for prompt in asked]
    async with running(model, policy=EagerDrafts()) as engine:
        for tokens in wanted:
            engine.teach("", tokens[:20], None)
        params = SamplingParams(max_tokens=30, ignore_eos=True)
        replies = await asyncio.gather(
            *(
                tokens_of(
                    engine, GenerationRequest(f"r{p[0]}", tuple(p), params, draft_scopes=("",))
                )
                for p in asked
            )
        )
        assert drafts(engine)[1] > 60
    assert replies == wanted


async def test_a_wrong_draft_leaves_nothing_in_the_cache() -> None:
    """The next turn is served from blocks that once held rejected tokens."""
    model = tiny_model()
    (prompt,) = prompts(1)
    reply = generate(model, prompt, 40)
    turn = [*prompt, *reply, *b"and then"]
    async with running(model, policy=EagerDrafts()) as engine:
        for start in range(0, 30, 3):
            engine.teach("", [*reply[start : start + 4], *([9] * 8)], None)
        params = SamplingParams(max_tokens=40, ignore_eos=True)
        first = GenerationRequest("first", tuple(prompt), params, draft_scopes=("",))
        assert await tokens_of(engine, first) == reply
        drafted, accepted = drafts(engine)
        assert drafted - accepted > 40
        chunks = await collect(engine, request(turn, max_tokens=20, ignore_eos=True))
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.cached_tokens == len(prompt) + 39
        tokens = [token for chunk in chunks for token in chunk.token_ids]
    assert tokens == generate(model, turn, 20)


async def test_turn_six_prefills_its_new_tokens_alone() -> None:
    async with running(tiny_model(), policy=EagerDrafts()) as engine:
        (history,) = prompts(1)
        for turn in range(1, 7):
            known = len(history)
            history += b"And then? " if turn > 1 else b""
            before = engine.stats().prefill_tokens_computed
            params = SamplingParams(max_tokens=30, ignore_eos=True)
            one = GenerationRequest(
                f"turn {turn}", tuple(history), params, owner="A", shared_tokens=20
            )
            chunks = await collect(engine, one)
            computed = engine.stats().prefill_tokens_computed - before
            if turn > 1:
                # the last token chosen was never computed
                assert computed <= len(history) - known + 1
            history += [token for chunk in chunks for token in chunk.token_ids]


# -- what a stream looks like with several tokens a step


def taught(text: str) -> list[int]:
    return [*text.encode(), END]


async def drafted_reply(text: str, **options: Any) -> tuple[list[Any], int]:
    """The chunks of a scripted reply whose whole text is drafted, and the tokens accepted."""
    runner = ScriptedRunner({1: taught(text)})
    async with running(tiny_model(), runner=runner, policy=EagerDrafts()) as engine:
        engine.teach("", text.encode(), None)
        params = SamplingParams(**options)
        chunks = await collect(engine, GenerationRequest("r", (1,), params, draft_scopes=("",)))
        assert engine.stats().blocks_used == 0
        return chunks, drafts(engine)[1]


async def test_several_tokens_of_a_step_are_one_chunk_and_the_end_token_shows_nothing() -> None:
    chunks, accepted = await drafted_reply("Hello there, Anna!")
    assert "".join(chunk.text for chunk in chunks) == "Hello there, Anna!"
    assert [len(chunk.token_ids) for chunk in chunks] == [9, 9, 1]
    assert accepted == 16
    last = chunks[-1]
    assert (last.finish_reason, last.usage.completion_tokens) == ("end", 19)
    assert last.confidence == 0.5


@pytest.mark.parametrize("stop", ["there", " An", "!"])
async def test_what_follows_a_stop_string_in_the_same_step_does_not_count(stop: str) -> None:
    text = "Hello there, Anna! And so on."
    chunks, accepted = await drafted_reply(text, stop=(stop,))
    shown = text[: text.index(stop)]
    assert "".join(chunk.text for chunk in chunks) == shown
    counted = len(shown) + len(stop)
    assert chunks[-1].finish_reason == "end"
    assert chunks[-1].usage.completion_tokens == counted
    assert sum(len(chunk.token_ids) for chunk in chunks) == counted
    assert accepted > 0


async def test_max_tokens_is_kept() -> None:
    for most in range(1, 14):
        chunks, _ = await drafted_reply("Hello there, Anna!", max_tokens=most)
        assert "".join(chunk.text for chunk in chunks) == "Hello there, Anna!"[:most]
        assert chunks[-1].finish_reason == "length"
        assert chunks[-1].usage.completion_tokens == most


async def test_characters_are_never_cut_by_a_step() -> None:
    text = "Naïve 👩‍👩‍👧 日本, ganz schön"
    chunks, accepted = await drafted_reply(text)
    assert "".join(chunk.text for chunk in chunks) == text
    assert not any("\ufffd" in chunk.text for chunk in chunks)
    assert accepted > 20


async def test_without_drafts_there_are_none() -> None:
    async with running(tiny_model(), policy=EagerDrafts(), max_draft_tokens=0) as engine:
        (prompt,) = prompts(1)
        engine.teach("", prompt, None)
        await tokens_of(engine, request(prompt, max_tokens=20, ignore_eos=True))
        assert engine.stats().drafts == ()


async def test_the_policy_of_every_day_drafts_what_is_taught() -> None:
    """With measured costs, whatever they are: the reply is generate's."""
    model = tiny_model()
    (prompt,) = prompts(1)
    wanted = generate(model, prompt, 60)
    async with running(model, policy=DraftPolicy()) as engine:
        engine.teach("", wanted, None)
        params = SamplingParams(max_tokens=60, ignore_eos=True)
        for number in range(3):
            asked = GenerationRequest(f"r{number}", tuple(prompt), params, draft_scopes=("",))
            assert await tokens_of(engine, asked) == wanted


# -- sampled replies keep their distribution


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 1.3, "top_k": 6},
        {"temperature": 0.9, "top_p": 0.8, "repetition_penalty": 1.6},
    ],
    ids=str,
)
def test_sampled_tokens_have_the_distribution_of_no_drafts(params: dict[str, Any]) -> None:
    """The joint distribution of two tokens, with a likely and an unlikely draft, against the one
    that is computed. Each of 37 counts in 2500 draws is within :func:`_bound` of what is expected,
    which a right program misses once in 1e8; with the two drafts and three cases here, once in
    4e5 runs."""
    torch.manual_seed(8)
    vocabulary, count = 6, 2500
    logits = torch.randn(1 + vocabulary, vocabulary) * 1.5  # of the first; then by the first
    wanted = _joint(logits, params)
    for first in (int(logits[0].argmax()), int(logits[0].argmin())):
        choosers = [TokenChooser(SamplingParams(seed=n, **params), (0,)) for n in range(count)]
        works = [
            Work(Sequence("r", (0,), 50, chooser=c), 0, 1, True, True, Draft((first,), "prompt", 2))
            for c in choosers
        ]
        rows = torch.stack((logits[0], logits[1 + first])).repeat(count, 1)
        choices = verify(works, *choose_tokens(rows, rows_of(works)))
        stood = sum(len(choice.tokens) == 2 for choice in choices)
        # rejected: the second token is another step's
        short = [n for n, choice in enumerate(choices) if len(choice.tokens) == 1]
        for n in short:
            choosers[n].record(choices[n].tokens[0], 0.5)
        after = torch.tensor([1 + choices[n].tokens[0] for n in short])
        seconds, _ = choose_tokens(logits[after], [Row(choosers[n]) for n in short])
        pairs = [choice.tokens for choice in choices if len(choice.tokens) == 2]
        pairs += [(choices[n].tokens[0], t) for n, t in zip(short, seconds, strict=True)]
        seen = torch.zeros(vocabulary, vocabulary)
        for pair in pairs:
            seen[pair] += 1
        assert ((seen - count * wanted).abs() <= _bound(wanted, count)).all()
        share = wanted[first].sum()
        assert abs(stood - count * share) <= _bound(share, count)


def _bound(shares: torch.Tensor, count: int) -> torch.Tensor:
    """By Bernstein's inequality a binomial count is further from its mean than this with
    probability 1e-8 at most."""
    third = math.log(2 / 1e-8) / 3
    return third + (third**2 + 6 * third * count * shares * (1 - shares)).sqrt()


def _joint(logits: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
    """P(first, second) by the definition, one token at a time."""
    from transformers.generation.logits_process import (
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    def chances(row: torch.Tensor, before: list[int]) -> torch.Tensor:
        ids, scores = torch.tensor([before]), row[None].clone()
        if "repetition_penalty" in params:
            scores = RepetitionPenaltyLogitsProcessor(params["repetition_penalty"])(ids, scores)
        scores = TemperatureLogitsWarper(params["temperature"])(ids, scores)
        if "top_k" in params:
            scores = TopKLogitsWarper(params["top_k"])(ids, scores)
        if "top_p" in params:
            scores = TopPLogitsWarper(params["top_p"])(ids, scores)
        return scores.softmax(-1)[0]

    first = chances(logits[0], [0])
    rows = [chances(logits[1 + token], [0, token]) for token in range(logits.shape[1])]
    return first[:, None] * torch.stack(rows)


async def test_a_seed_gives_the_same_reply_with_and_without_drafts() -> None:
    asked = list(prompts(5))
    replies = []
    for policy, most in ((None, 0), (EagerDrafts(), 8), (EagerDrafts(), 3)):
        async with running(tiny_model(), policy=policy, max_draft_tokens=most) as engine:
            texts = []
            for prompt in asked:
                params = SamplingParams(
                    temperature=0.4, top_p=0.9, seed=7, max_tokens=40, ignore_eos=True
                )
                for number in range(2):  # the second time from what the first one said
                    name = f"{prompt[0]} {number}"
                    one = GenerationRequest(name, tuple(prompt), params, draft_scopes=("",))
                    texts.append(await tokens_of(engine, one))
                    engine.teach("", texts[-1], None)
            replies.append(texts)
            if most:
                assert drafts(engine)[1] > 100
    assert replies[0] == replies[1] == replies[2]


def test_chances_of_a_reply_are_kept_between_its_steps() -> None:
    drafter = ReplyDrafter(4, EagerDrafts())
    sequence = Sequence("r", (1, 2, 3, 1, 2), 50)
    draft = drafter.plan([sequence], 1)[sequence]
    drafter.verified(sequence, draft, 2)
    assert sequence.draft_state is not None
    assert sequence.draft_state.chance == Chance(2, 3)
    assert [(c.source, c.drafted, c.accepted) for c in drafter.counts] == [
        ("prompt", 4, 2),
        ("replies", 0, 0),
    ]
