"""Whether a row's logits have the same bits in any company. A program, so that oneDNN can be held
to the instructions for which that is promised:

    ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python -m tests.chatbot.engine_contract.company RUNTIME

prints how many rows of each case differ, as JSON. The model is random, with matrices and contexts
so long that a product of one row, or of a longer sum, would add up in another order.
"""

import itertools
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from chatbot.engine.torch.adapters import LoraAdapter
from chatbot.engine.torch.draft_policy import Draft
from chatbot.engine.torch.families import build_decoder
from chatbot.engine.torch.models import LoraDelta
from chatbot.engine.torch.scheduler import Step, Work
from chatbot.engine.torch.sequence import Sequence

BLOCKS = 1024
CONTEXT = 2048
Score = Callable[[list[Work]], torch.Tensor]  # logits of every row of the works


def model() -> Any:
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=1536,
        intermediate_size=2048,
        num_hidden_layers=2,
        num_attention_heads=12,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.05,
    )
    return AutoModelForCausalLM.from_config(config).float().eval()


def torch_score() -> tuple[Score, int, list[tuple[int, int]]]:
    from chatbot.engine.torch.runner import TorchRunner, _in_rows

    decoder = build_decoder(model().to(torch.bfloat16), CONTEXT, frozenset())
    sizes = [(linear.weight.shape[0], linear.weight.shape[1]) for linear in decoder.sites]
    decoder.pack()
    runner = TorchRunner(decoder, BLOCKS, 16)
    runner.cache.keys.zero_()
    runner.cache.values.zero_()

    def score(works: list[Work]) -> torch.Tensor:
        ordered = _in_rows(works)
        rows = sum(work.rows for work in works)
        with torch.inference_mode():
            batch = replace(runner.build(ordered), sampled=torch.arange(rows))
            parts = decoder.forward(batch, runner.cache).split([work.rows for work in ordered])
        return torch.cat([parts[ordered.index(work)] for work in works])

    return score, 16, sizes


def openvino_score() -> tuple[Score, int, list[tuple[int, int]]]:
    from chatbot.engine.openvino.export import convert
    from chatbot.engine.openvino.graph import BLOCK_SIZE
    from chatbot.engine.openvino.runner import OpenVinoRunner, _sizes

    exact = model()
    export = convert(build_decoder(exact, CONTEXT, frozenset()), exact.config, lambda _: None)
    runner = OpenVinoRunner(export, BLOCKS, "bfloat16", 0, "int8")
    return (
        lambda works: runner.score(Step(tuple(works), (), ())),
        BLOCK_SIZE,
        _sizes(export),
    )


class Company:
    def __init__(self, score: Score, block_size: int, sizes: list[tuple[int, int]]) -> None:
        self.score = score
        self.block_size = block_size
        self._free = itertools.count()
        self._random = random.Random(5)
        self._sizes = sizes

    def tokens(self, count: int) -> list[int]:
        return [self._random.randrange(512) for _ in range(count)]

    def adapter(self, name: str) -> LoraAdapter:
        torch.manual_seed(len(name))
        deltas = (
            LoraDelta(*(0.03 * torch.randn(shape).bfloat16() for shape in ((size, 48), (48, out))))
            for out, size in self._sizes
        )
        return LoraAdapter(name, name, tuple(deltas))

    def sequence(
        self, prompt: list[int], said: list[int], adapter: LoraAdapter | None = None
    ) -> Sequence:
        count = -(-(len(prompt) + len(said)) // self.block_size)
        blocks = [next(self._free) % BLOCKS for _ in range(count)]
        found = Sequence("r", tuple(prompt), max_tokens=1, adapter=adapter, blocks=blocks)
        found.tokens += said
        return found

    def prompts(
        self, prompts: list[list[int]], said: int, adapter: LoraAdapter | None = None
    ) -> list[Sequence]:
        """Sequences whose prompts are computed, each alone."""
        found = [self.sequence(prompt, self.tokens(said), adapter) for prompt in prompts]
        for one, prompt in zip(found, prompts, strict=True):
            self.score([Work(one, 0, len(prompt), True, False)])
        return found

    def cases(self, reply_is_a_prompt: bool) -> Iterator[tuple[str, int]]:
        prompts = [self.tokens(count) for count in (3, 40, 97, 130, 211, 64, 65)]
        yield "prompts together", self._prompts_together(prompts)
        cuts = ([100], [1, 2], [64, 128], [299], [16, 17, 200], [33, 98, 99, 298])
        yield "a prompt in pieces", self._in_pieces(self.tokens(300), *cuts)
        yield "a long prompt in pieces", self._in_pieces(self.tokens(1100), [900])
        yield "replies together", self._replies_together(prompts, [])
        yield "beside a long reply", self._replies_together(prompts, self.tokens(1100))
        yield "drafted", self._drafted(prompts)
        yield "with adapters", self._with_adapters(prompts)
        yield "computed again", self._computed_again(prompts, as_prompt=False)
        if reply_is_a_prompt:
            yield "said again in a prompt", self._computed_again(prompts, as_prompt=True)

    def _prompts_together(self, prompts: list[list[int]]) -> int:
        works = [
            [Work(self.sequence(p, []), 0, len(p), True, False) for p in prompts] for _ in range(2)
        ]
        return differing(torch.cat([self.score([work]) for work in works[0]]), self.score(works[1]))

    def _in_pieces(self, prompt: list[int], *ends: list[int]) -> int:
        whole = self.score([Work(self.sequence(prompt, []), 0, len(prompt), True, False)])
        bad = 0
        for inner in ends:
            one = self.sequence(prompt, [])
            cuts = itertools.pairwise([0, *inner, len(prompt)])
            rows = [self.score([Work(one, a, b, True, False)]) for a, b in cuts]
            bad += differing(whole, torch.cat(rows))
        return bad

    def _replies_together(self, prompts: list[list[int]], longer: list[int]) -> int:
        """Alone; in one step; and beside a prompt."""
        longest = [longer, longer[:900]] if longer else []
        running = self.prompts([*prompts, *longest], 8)
        beside = self.tokens(80)
        bad = 0
        for place in range(8):
            works = [
                Work(one, at := len(one.prompt) + place, at + 1, True, True) for one in running
            ]
            alone = torch.cat([self.score([work]) for work in works])
            prompt = Work(self.sequence(beside, []), 0, len(beside), True, False)
            both = self.score([*works, prompt])[: len(works)]
            bad += differing(alone, self.score(works)) + differing(alone, both)
        return bad

    def _drafted(self, prompts: list[list[int]]) -> int:
        running = self.prompts(prompts, 8)
        single = [self._one_by_one(one) for one in running]
        drafted = []
        for count, one in enumerate(running, start=1):
            at, said = len(one.prompt), tuple(one.tokens[len(one.prompt) :])
            drafted.append(Work(one, at, at + 1, True, True, Draft(said[1 : count + 1], "", 1)))
        rows = self.score(drafted).split([work.rows for work in drafted])
        return sum(
            differing(one[: len(other)], other) for one, other in zip(single, rows, strict=True)
        )

    def _with_adapters(self, prompts: list[list[int]]) -> int:
        """One of them has an adapter for itself."""
        adapters = [self.adapter("a"), *[self.adapter("bb")] * (len(prompts) - 1)]
        running = [
            self.prompts([prompt], 4, adapter)[0]
            for prompt, adapter in zip(prompts, adapters, strict=True)
        ]
        bad = 0
        for place in range(4):
            works = [
                Work(one, at := len(one.prompt) + place, at + 1, True, True) for one in running
            ]
            bad += differing(torch.cat([self.score([work]) for work in works]), self.score(works))
        return bad

    def _computed_again(self, prompts: list[list[int]], as_prompt: bool) -> int:
        """A reply whose blocks were given up; or one that the next prompt repeats."""
        bad = 0
        for one in self.prompts(prompts, 8):
            single = self._one_by_one(one)
            said = one.tokens[len(one.prompt) :]
            prompt = [*one.prompt, *(said if as_prompt else [])]
            again = self.sequence(prompt, [] if as_prompt else said)
            for first, last in itertools.pairwise(sorted({0, len(prompt), len(again.tokens)})):
                rows = self.score([Work(again, first, last, True, False)])
            bad += differing(single, rows[-len(said) :])
        return bad

    def _one_by_one(self, one: Sequence) -> torch.Tensor:
        places = range(len(one.prompt), len(one.tokens))
        return torch.cat([self.score([Work(one, at, at + 1, True, True)]) for at in places])


def differing(left: torch.Tensor, right: torch.Tensor) -> int:
    """Rows with any bit of a number that differs."""
    return int((left != right).any(-1).sum())


if __name__ == "__main__":
    runtime = sys.argv[1]
    made = torch_score() if runtime == "torch" else openvino_score()
    print(json.dumps(dict(Company(*made).cases(reply_is_a_prompt=runtime == "torch"))))
