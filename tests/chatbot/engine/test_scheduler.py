"""The scheduler with a mock model that has no tensors.

The mock keeps a paged cache of its own: each slot holds a fingerprint of everything up to its
token, namespace included. Before it "computes" a token it checks that every slot before it holds
what it must, so a block that is shared wrongly, evicted while in use, or not computed is seen at
once.
"""

import random
from collections import Counter
from collections.abc import Sequence as Items
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.engine.torch.blocks import BlockManager
from chatbot.engine.torch.draft_policy import Draft
from chatbot.engine.torch.drafts import draft_room
from chatbot.engine.torch.scheduler import Scheduler, Step, Work
from chatbot.engine.torch.sequence import Sequence
from chatbot.errors import EngineBusy, RequestRefused

SIZE = 4


def fingerprint(asked: Sequence, tokens: list[int], count: int) -> int:
    """Of the first ``count`` tokens, as the slot of the last of them must hold it."""
    private = asked.shared_tokens is not None and (count - 1) // SIZE >= asked.shared_tokens // SIZE
    owner = asked.owner if private else None
    return hash((asked.namespace, owner, tuple(tokens[:count])))


def next_token(asked: Sequence, tokens: list[int]) -> int:
    return hash((asked.namespace, tuple(tokens))) % 7


class MockModel:
    def __init__(self, blocks: int) -> None:
        self.slots = [0] * (blocks * SIZE)

    def slot(self, sequence: Sequence, place: int) -> int:
        return sequence.blocks[place // SIZE] * SIZE + place % SIZE

    def run(self, step: Step) -> list[list[int]]:
        held = [self.slots[block * SIZE : (block + 1) * SIZE] for block, _ in step.copies]
        for block in step.fresh:
            self.slots[block * SIZE : (block + 1) * SIZE] = [0] * SIZE
        for (_, block), slots in zip(step.copies, held, strict=True):
            self.slots[block * SIZE : (block + 1) * SIZE] = slots
        return [choice for work in step.works for choice in self.compute(work)]

    def compute(self, work: Work) -> list[list[int]]:
        """The tokens chosen, in a list; an empty one if the work chooses none."""
        item = work.sequence
        tokens = [*item.tokens[: work.end], *work.drafted]
        for place in range(work.start):
            held = self.slots[self.slot(item, place)]
            assert held == fingerprint(item, tokens, place + 1), "a wrong or missing cache entry"
        for place in range(work.start, work.stop):
            self.slots[self.slot(item, place)] = fingerprint(item, tokens, place + 1)
        if not work.samples:
            return []
        chosen = [next_token(item, tokens[: work.end])]
        for place, drafted in enumerate(work.drafted, start=work.end):
            if chosen[-1] != drafted:
                break
            chosen.append(next_token(item, tokens[: place + 1]))
        return [chosen]


class RandomDrafter:
    """Drafts that are right with some probability, token by token, or there are none."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.verdicts: list[tuple[int, int]] = []  # (tokens drafted, tokens that stood)

    def plan(self, sequences: Items[Sequence], rows: int) -> dict[Sequence, Draft]:
        found = {item: self.draft(item) for item in sequences}
        return {item: draft for item, draft in found.items() if draft is not None}

    def draft(self, item: Sequence) -> Draft | None:
        tokens = list(item.tokens)
        for _ in range(min(self.random.randrange(9), draft_room(item))):
            right = next_token(item, tokens)
            tokens.append(right if self.random.random() < 0.7 else (right + 1) % 7)
        drafted = tokens[len(item.tokens) :]
        return Draft(tuple(drafted), "mock", 2) if drafted else None

    def verified(self, sequence: Sequence, draft: Draft, stood: int) -> None:
        self.verdicts.append((len(draft.tokens), stood))


def make(blocks: int = 64, **limits: Any) -> Scheduler:
    given: dict[str, Any] = {
        "max_running": 4,
        "max_waiting": 100,
        "prefill_chunk_tokens": 8,
    } | limits
    return Scheduler(BlockManager(blocks, SIZE), **(given | limits))


def sequence(prompt: list[int], count: int = 5, namespace: str = "a") -> Sequence:
    return Sequence("r", tuple(prompt), max_tokens=count, namespace=namespace)


def expected(asked: Sequence) -> list[int]:
    """What an undisturbed run of this request alone gives."""
    alone = sequence(list(asked.prompt), asked.max_tokens, asked.namespace)
    for _ in range(asked.max_tokens):
        alone.tokens.append(next_token(alone, alone.tokens))
    return alone.tokens


def check_blocks(scheduler: Scheduler) -> None:
    manager = scheduler.blocks
    assert manager.empty + manager.cached + manager.used == manager.total
    held = Counter(block for item in scheduler.running for block in item.blocks)
    assert all(manager.references(block) == held[block] for block in range(manager.total))
    assert not any(item.blocks for item in scheduler.waiting)
    for item in scheduler.running:
        assert len(item.blocks) == manager.blocks_for(item.computed)


def check_fairness(scheduler: Scheduler, step: Step, before: list[Sequence]) -> None:
    """The written rule; ``before``: the sequences that were decoding before the step."""
    placed = [work.sequence for work in step.works]
    assert len(placed) == len(set(map(id, placed)))
    for item in before:
        assert item in placed or item in scheduler.waiting or item in step.stopped
    prefilled = sum(work.end - work.start for work in step.works if not work.decodes)
    assert prefilled <= scheduler.prefill_chunk_tokens
    for work in step.works:
        assert len(work.sequence.blocks) == scheduler.blocks.blocks_for(work.stop)
        assert len(work.drafted) <= draft_room(work.sequence)
        if scheduler.prompts_apart:
            told = len(work.sequence.prompt)
            assert work.stop <= told or work.start >= told
    everyone = scheduler.running + scheduler.waiting
    if everyone:
        assert min(everyone, key=lambda item: item.arrival) in placed, "the oldest stood still"


def advance(scheduler: Scheduler, model: MockModel) -> Step:
    before = [item for item in scheduler.running if item.decoding]
    step = scheduler.schedule()
    check_fairness(scheduler, step, before)
    scheduler.commit(step, model.run(step))
    check_blocks(scheduler)
    return step


arrival = st.tuples(
    st.just("add"),
    st.lists(st.integers(0, 1), min_size=1, max_size=24),
    st.integers(1, 12),
    st.sampled_from("ab"),
    st.sampled_from([None, 0, 3, 8]),  # tokens that are shared
    st.sampled_from(["", "Anna", "Ben"]),
)
operation = st.one_of(
    arrival,
    st.tuples(st.just("step"), st.integers(1, 4)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("fail")),
)


@settings(max_examples=150, deadline=None)
@given(
    blocks=st.integers(9, 30),
    max_running=st.integers(1, 6),
    chunk=st.integers(4, 20),
    drafts=st.one_of(st.none(), st.integers(0, 1000)),
    apart=st.booleans(),
    operations=st.lists(operation, max_size=40),
)
def test_random_traffic(
    blocks: int,
    max_running: int,
    chunk: int,
    drafts: int | None,
    apart: bool,
    operations: list[tuple[Any, ...]],
) -> None:
    scheduler = make(
        blocks,
        max_running=max_running,
        prefill_chunk_tokens=chunk,
        drafter=None if drafts is None else RandomDrafter(drafts),
        prompts_apart=apart,
    )
    model = MockModel(blocks)
    everyone: list[Sequence] = []
    failed: list[Sequence] = []
    for name, *arguments in operations:
        if name == "add":
            prompt, count, namespace, shared, owner = arguments
            everyone.append(sequence(prompt, count, namespace))
            everyone[-1].shared_tokens, everyone[-1].owner = shared, owner
            scheduler.add(everyone[-1])
        elif name == "step":
            for _ in range(arguments[0]):
                advance(scheduler, model)
        elif name == "cancel" and everyone:
            everyone[arguments[0] % len(everyone)].cancelled = True
        elif name == "fail":  # the model fails in the middle of a step
            step = scheduler.schedule()
            for work in step.works:
                failed.append(work.sequence)
                scheduler.finish(work.sequence, None, keep=False)
            check_blocks(scheduler)
    left = sum(len(item.prompt) + item.max_tokens for item in everyone)
    for _ in range(2 * left + 10):  # far more than any fair order needs
        if scheduler.idle:
            break
        advance(scheduler, model)
    assert scheduler.idle
    assert scheduler.blocks.used == 0
    for item in everyone:
        if item in failed:
            continue
        if item.finish_reason == "length":
            assert item.tokens == expected(item)
        else:
            assert item.finish_reason == "stopped"
            assert item.cancelled


def test_running_replies_get_a_token_in_every_step_of_a_long_prefill() -> None:
    scheduler, model = make(prefill_chunk_tokens=8), MockModel(64)
    talker = sequence([1], count=40)
    scheduler.add(talker)
    advance(scheduler, model)
    scheduler.add(sequence(list(range(80)), count=1))
    for _ in range(10):
        generated = talker.generated
        step = advance(scheduler, model)
        assert talker.generated == generated + 1
        assert sum(work.end - work.start for work in step.works if not work.decodes) == 8


def test_prompts_advance_while_every_other_place_decodes() -> None:
    scheduler, model = make(max_running=4), MockModel(64)
    for index in range(3):
        scheduler.add(sequence([index], count=40))
    advance(scheduler, model)
    late = sequence(list(range(20)), count=1)
    scheduler.add(late)
    for _ in range(3):
        advance(scheduler, model)
    assert late.finish_reason == "length"


def test_the_youngest_is_preempted_and_its_reply_is_unchanged() -> None:
    scheduler, model = make(blocks=8), MockModel(8)
    old, young = sequence([1] * 8, count=16), sequence([2] * 8, count=16)
    scheduler.add(old)
    scheduler.add(young)
    while not scheduler.idle:
        advance(scheduler, model)
    assert (old.preemptions, young.preemptions) == (0, 1)
    assert scheduler.preemptions == 1
    assert old.tokens == expected(old)
    assert young.tokens == expected(young)


def test_a_prefix_that_another_prompt_computes_now_is_computed_once() -> None:
    scheduler, model = make(prefill_chunk_tokens=64), MockModel(64)
    shared = list(range(16))
    for index in range(4):
        scheduler.add(sequence([*shared, 100 + index], count=2))
    while not scheduler.idle:
        advance(scheduler, model)
    assert scheduler.prefill_tokens_computed == 17 + 3 * 1
    assert scheduler.prefill_tokens_cached == 3 * 16


def test_the_next_turn_prefills_the_new_text_alone() -> None:
    scheduler, model = make(), MockModel(64)
    for count in range(1, 10):
        first = sequence([count] * 11, count=count)
        scheduler.add(first)
        while not scheduler.idle:
            advance(scheduler, model)
        # the last token's own keys and values were never computed: it counts as new
        known = first.tokens[:-1]
        second = sequence([*known, 50, 51, 52], count=1)
        scheduler.add(second)
        while not scheduler.idle:
            advance(scheduler, model)
        assert second.cached_tokens == len(known)


def test_a_turn_that_differs_within_the_last_block_takes_what_is_the_same() -> None:
    scheduler, model = make(), MockModel(64)
    for prompt, wanted in [([7] * 11, 0), ([*[7] * 10, 8], 10), ([*[7] * 10, 9, 9], 10)]:
        item = sequence(prompt, count=1)
        scheduler.add(item)
        while not scheduler.idle:
            advance(scheduler, model)
        assert item.cached_tokens == wanted


def test_two_that_go_on_after_the_same_reply_do_not_write_into_one_block() -> None:
    scheduler, model = make(), MockModel(64)
    scheduler.add(sequence([7] * 10, count=1))
    while not scheduler.idle:
        advance(scheduler, model)
    both = [sequence([*[7] * 10, last, last], count=4) for last in (1, 2)]
    for item in both:
        scheduler.add(item)
    while not scheduler.idle:
        advance(scheduler, model)
    assert [item.cached_tokens for item in both] == [10, 10]
    assert [item.tokens for item in both] == [expected(item) for item in both]


def test_a_last_block_is_found_by_its_owner_alone() -> None:
    scheduler, model = make(), MockModel(64)
    for owner, wanted in [("Anna", 0), ("Ben", 4), ("Anna", 6)]:
        item = owned([*[7] * 4, 8, 8, 9], owner, 4)
        scheduler.add(item)
        while not scheduler.idle:
            advance(scheduler, model)
        assert item.cached_tokens == wanted, owner


def test_one_token_of_a_prompt_is_always_computed() -> None:
    scheduler, model = make(), MockModel(64)
    for expected_cached in (0, 7):
        again = sequence([7] * 8, count=1)
        scheduler.add(again)
        while not scheduler.idle:
            advance(scheduler, model)
        assert again.cached_tokens == expected_cached


def test_namespaces_never_share() -> None:
    scheduler, model = make(), MockModel(64)
    for namespace in ("a", "b"):
        item = sequence([7] * 20, count=1, namespace=namespace)
        scheduler.add(item)
        while not scheduler.idle:
            advance(scheduler, model)
        assert item.cached_tokens == 0


def test_a_full_queue_refuses_with_an_estimate() -> None:
    now = [0.0]
    scheduler = Scheduler(
        BlockManager(64, SIZE),
        max_running=1,
        max_waiting=1,
        prefill_chunk_tokens=8,
        clock=lambda: now[0],
    )
    model = MockModel(64)
    for _ in range(2):
        scheduler.add(sequence([1], count=1))
    now[0] = 4.0
    with pytest.raises(EngineBusy) as refused:
        scheduler.add(sequence([1]))
    assert refused.value.retry_after == pytest.approx(2.0)  # 4 s of life, 2 alive
    advance(scheduler, model)
    scheduler.add(sequence([1], count=1))
    now[0] = 6.0
    with pytest.raises(EngineBusy) as refused:
        scheduler.add(sequence([1]))
    assert refused.value.retry_after == pytest.approx(2.0)  # the first one lived 4 s


def test_a_request_larger_than_the_cache_is_refused() -> None:
    scheduler = make(blocks=2)
    with pytest.raises(RequestRefused, match="FRONTDESK_KV_CACHE_TOKENS"):
        scheduler.add(sequence([1] * 7, count=2))


def test_a_cancelled_sequence_is_gone_at_the_next_step() -> None:
    scheduler, model = make(), MockModel(64)
    item = sequence([1] * 9, count=50)
    scheduler.add(item)
    advance(scheduler, model)
    assert scheduler.blocks.used > 0
    item.cancelled = True
    step = advance(scheduler, model)
    assert step.stopped == (item,)
    assert scheduler.blocks.used == 0
    assert item.finish_reason == "stopped"


def test_the_end_token_ends_a_reply() -> None:
    scheduler, model = make(), MockModel(64)
    item = sequence([3, 1], count=50)
    item.end_ids = frozenset(range(7))
    scheduler.add(item)
    advance(scheduler, model)
    assert (item.finish_reason, item.generated) == ("end", 1)


def test_a_sequence_that_ended_during_a_step_is_left_alone_by_its_commit() -> None:
    scheduler, model = make(), MockModel(64)
    gone, stays = sequence([1] * 9, count=3), sequence([2] * 9, count=3)
    scheduler.prefill_chunk_tokens = 32
    scheduler.add(gone)
    scheduler.add(stays)
    step = scheduler.schedule()
    chosen = model.run(step)
    scheduler.finish(gone, None, keep=False)
    scheduler.commit(step, chosen)
    check_blocks(scheduler)
    assert (gone.generated, stays.generated) == (0, 1)
    while not scheduler.idle:
        advance(scheduler, model)
    assert stays.tokens == expected(stays)


def test_drafts_that_stand_make_fewer_steps_and_the_same_reply() -> None:
    steps = {}
    for drafter in (None, RandomDrafter(1)):
        scheduler, model = make(drafter=drafter), MockModel(64)
        items = [sequence([index] * 9, count=30) for index in range(3)]
        for item in items:
            scheduler.add(item)
        steps[drafter] = 0
        while not scheduler.idle:
            advance(scheduler, model)
            steps[drafter] += 1
        assert all(item.tokens == expected(item) for item in items)
        assert scheduler.generated_tokens == 90
    assert drafter is not None
    assert any(stood == tried for tried, stood in drafter.verdicts)
    assert any(stood < tried for tried, stood in drafter.verdicts)
    assert steps[drafter] < 0.7 * steps[None]


def test_a_draft_preempts_nobody_and_takes_only_free_blocks() -> None:
    class Greedy(RandomDrafter):
        def draft(self, item: Sequence) -> Draft | None:
            room = min(3, draft_room(item))
            return Draft((9,) * room, "mock", 2) if room else None

    scheduler, model = make(blocks=6, drafter=Greedy(0)), MockModel(6)
    items = [sequence([1] * 4, count=8), sequence([2] * 4, count=8)]
    for item in items:
        scheduler.add(item)
    while not scheduler.idle:
        advance(scheduler, model)
    assert scheduler.preemptions == 0
    assert all(item.tokens == expected(item) for item in items)


def _before(draft: Draft, end: int) -> Draft | None:
    tokens = [*draft.tokens, end]
    return draft.first(tokens.index(end))


def test_an_end_token_after_a_draft_ends_the_reply() -> None:
    scheduler, model = make(drafter=RandomDrafter(1)), MockModel(64)
    item = sequence([3, 1], count=50)
    whole = expected(item)[2:]
    end = whole[6]
    item.end_ids = frozenset([end])
    scheduler.add(item)
    while not scheduler.idle:
        step = scheduler.schedule()
        cut = [replace(w, draft=w.draft and _before(w.draft, end)) for w in step.works]
        scheduler.commit(step, model.run(replace(step, works=tuple(cut))))
        check_blocks(scheduler)
    assert item.finish_reason == "end"
    assert item.tokens[2:] == whole[: whole.index(end) + 1]


def owned(prompt: list[int], owner: str, shared: int) -> Sequence:
    item = sequence(prompt, count=1)
    item.owner, item.shared_tokens = owner, shared
    return item


def test_what_is_private_is_shared_with_its_owner_alone() -> None:
    """Cached tokens of a prompt of 4 shared and 8 private tokens, down to whole blocks."""
    scheduler, model = make(), MockModel(64)
    prompt = [7] * 4 + [8] * 9
    for owner, wanted in [("Anna", 0), ("Ben", 4), ("Anna", 12), ("Ben", 12), ("", 4)]:
        item = owned(prompt, owner, 4)
        scheduler.add(item)
        while not scheduler.idle:
            advance(scheduler, model)
        assert item.cached_tokens == wanted, owner


def test_a_block_that_is_shared_in_part_is_private() -> None:
    scheduler, model = make(), MockModel(64)
    for owner, wanted in [("Anna", 0), ("Ben", 4), ("Anna", 12)]:
        item = owned([7] * 13, owner, 7)
        scheduler.add(item)
        while not scheduler.idle:
            advance(scheduler, model)
        assert item.cached_tokens == wanted, owner


def test_a_shared_beginning_that_another_prompt_computes_now_is_computed_once() -> None:
    scheduler, model = make(prefill_chunk_tokens=64), MockModel(64)
    for number in range(4):
        scheduler.add(owned([7] * 8 + [number] * 5, f"owner {number}", 8))
    while not scheduler.idle:
        advance(scheduler, model)
    assert scheduler.prefill_tokens_computed == 13 + 3 * 5


def test_a_full_cache_sheds_the_oldest_idle_conversation_first() -> None:
    scheduler, model = make(blocks=9), MockModel(9)
    for number in (1, 2, 3):
        scheduler.add(sequence([number] * 9, count=1))
        while not scheduler.idle:
            advance(scheduler, model)
    scheduler.add(sequence([4] * 12, count=1))  # takes what was the first one's, and no more
    while not scheduler.idle:
        advance(scheduler, model)
    cached = []
    for number in (3, 2, 1):
        item = sequence([number] * 9, count=1)
        scheduler.add(item)
        while not scheduler.idle:
            advance(scheduler, model)
        cached.append(item.cached_tokens)
    assert cached == [8, 8, 0]
