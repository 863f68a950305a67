"""The dense cache holds what the blocks hold, whoever comes and goes."""

import asyncio
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatbot.engine.torch.attention import MOST, PagedCache, portions
from chatbot.engine.torch.blocks import BLOCK_SIZE
from chatbot.engine.torch.dense import GRAIN, Dense, DenseCache
from chatbot.engine.torch.families import build_decoder
from chatbot.engine.torch.runner import TorchRunner
from chatbot.engine.torch.scheduler import Step, Work
from chatbot.engine.torch.sequence import Sequence
from tests.chatbot.engine.helpers import request, running, tiny_model, tokens_of

LAYERS, KV_HEADS, SIZE = 2, 2, 4
PROMPTS = [[1 + (seed + 7 * n) % 200 for n in range(20 * seed + 3)] for seed in range(9)]
PER_SEQUENCE = 3 * GRAIN // BLOCK_SIZE  # blocks


def test_portions_are_few_and_waste_little() -> None:
    assert [sum(portions(n)) for n in range(9)] == [0, 1, 2, 3, 4, 5, 6, 8, 8]
    for count in range(1, 200):
        found = portions(count)
        assert count <= sum(found) <= 1.25 * count
        assert all(size <= MOST and size.bit_count() == 1 for size in found)
        assert len(found) <= count // MOST + 3


@dataclass
class Replies:
    """Sequences of random length in a cache that is filled at random."""

    most: int = 64 * PER_SEQUENCE * BLOCK_SIZE
    running: list[Sequence] = field(default_factory=list)
    begun: int = 0

    def __post_init__(self) -> None:
        self.cache = PagedCache(
            layers=LAYERS,
            kv_heads=KV_HEADS,
            head_dim=SIZE,
            blocks=32 * PER_SEQUENCE,
            block_size=BLOCK_SIZE,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        self.cache.keys.normal_()
        self.cache.values.normal_()
        self.dense = DenseCache(self.cache, self.most)

    def begin(self, computed: int) -> Sequence:
        blocks = list(range(self.begun * PER_SEQUENCE, (self.begun + 1) * PER_SEQUENCE))
        sequence = Sequence(f"r{self.begun}", (1,), max_tokens=1, computed=computed, blocks=blocks)
        self.begun += 1
        self.running.append(sequence)
        return sequence

    def step(self, rows: dict[int, int]) -> None:
        """Compute so many rows of each of the running, by index; then compare."""
        works = [
            Work(self.running[n], at := self.running[n].computed, at + count, True, True)
            for n, count in rows.items()
        ]
        batch = sum(portions(len(works)))
        places = self.dense.hold(works, batch)
        assert places is not None
        assert len(set(places)) == len(works)
        total = sum(rows.values())
        fresh = torch.randn(2, LAYERS, total, KV_HEADS, SIZE)
        paged = torch.tensor(
            [
                work.sequence.blocks[place // BLOCK_SIZE] * BLOCK_SIZE + place % BLOCK_SIZE
                for work in works
                for place in range(work.start, work.stop)
            ]
        )
        for layer in range(LAYERS):
            self.cache.write(layer, self.cache.slots(paged), *fresh[:, layer])
            view = Dense(self.dense, batch, self.dense.slots(works, places))
            view.write(layer, *fresh[:, layer])
            for work, place in zip(works, places, strict=True):
                self._compare(layer, work, place, view)

    def _compare(self, layer: int, work: Work, place: int, view: Dense) -> None:
        table = torch.tensor([work.sequence.blocks])
        mine = slice(place * KV_HEADS, (place + 1) * KV_HEADS)
        for held, wanted in zip(view.read(layer), self.cache.gather(layer, table), strict=True):
            assert torch.equal(held[mine, : work.stop], wanted[:, : work.stop])
            assert held[mine].isfinite().all()


@given(st.data())
def test_it_holds_what_the_blocks_hold(data: st.DataObject) -> None:
    replies = Replies()
    longest = PER_SEQUENCE * BLOCK_SIZE - 4
    for _ in range(data.draw(st.integers(1, 12))):
        for _ in range(data.draw(st.integers(0, 3))):
            if replies.begun < 32:
                replies.begin(data.draw(st.integers(0, longest)))
        replies.running = [
            sequence
            for sequence in replies.running
            if sequence.computed < longest and data.draw(st.integers(0, 4))
        ]
        here = [n for n in range(len(replies.running)) if data.draw(st.integers(0, 5))]
        rows = {n: data.draw(st.integers(1, 4)) for n in here}
        if rows:
            replies.step(rows)
        else:  # as the runner does
            replies.dense = DenseCache(replies.cache, replies.most)
        for n, count in rows.items():  # of drafted tokens only some are taken
            replies.running[n].computed += data.draw(st.integers(1, count))
        for n in set(range(len(replies.running))) - rows.keys():  # was computed elsewhere
            replies.running[n].computed = data.draw(st.integers(0, longest))


@pytest.mark.parametrize("computed", [3, GRAIN - 1])  # GRAIN - 1: the next step needs more room
def test_what_is_not_a_number_stays_with_its_sequence(computed: int) -> None:
    replies = Replies()
    broken = replies.begin(2 * GRAIN - 1)
    for memory in (replies.cache.keys, replies.cache.values):
        memory[:, :, broken.blocks] = torch.nan
    works = [Work(broken, broken.computed, 2 * GRAIN, True, True)]
    assert replies.dense.hold(works, 1) == [0]
    assert replies.dense.layer(0, 1)[0].isnan().any()
    replies.running = []
    after = replies.begin(computed)
    replies.step({0: 1})  # in the same place; what is there beyond it is compared, too
    after.computed += 1
    replies.step({0: 1})


def test_more_than_it_may_have_is_refused() -> None:
    replies = Replies(most=4 * GRAIN)
    works = [Work(replies.begin(GRAIN - 1), GRAIN - 1, GRAIN, True, True) for _ in range(5)]
    assert replies.dense.hold(works, 5) is None
    assert replies.dense.hold(works[:4], 4) == [0, 1, 2, 3]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
async def test_gathered_in_every_step_it_is_the_same(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the system has no memory for it, or it would take too much, and on other devices."""
    model = tiny_model(family)

    def scarce(cache: PagedCache, most: int) -> DenseCache:
        if most:
            raise RuntimeError("can't allocate memory")
        return DenseCache(cache, most)

    async def said() -> list[list[int]]:
        async with running(model) as engine:
            asked = [request(prompt, max_tokens=70, ignore_eos=True) for prompt in PROMPTS]
            return list(await asyncio.gather(*(tokens_of(engine, one) for one in asked)))

    wanted = await said()
    with monkeypatch.context() as patched:
        patched.setattr("chatbot.engine.torch.runner.DenseCache", scarce)
        assert await said() == wanted


def test_memory_is_given_back_with_the_last_sequence() -> None:
    runner = TorchRunner(build_decoder(tiny_model(), 512, frozenset()), 32, BLOCK_SIZE)
    reply = Sequence("r", (1, 2), max_tokens=4, blocks=[0], computed=1)
    runner.build([Work(reply, 1, 2, True, True)])
    assert runner._dense
    prompt = Sequence("p", (1, 2, 3), max_tokens=4, blocks=[1])
    runner.run(Step((Work(prompt, 0, 3, False, False),), (1,), (), ()))
    assert not runner._dense
