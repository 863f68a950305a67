"""How many prompt tokens go beside running replies."""

import pytest

from chatbot.engine.torch.blocks import BlockManager
from chatbot.engine.torch.draft_policy import StepCost
from chatbot.engine.torch.pace import PrefillPace
from chatbot.engine.torch.scheduler import Scheduler
from chatbot.engine.torch.sequence import Sequence

BLOCK = 4


def pace(fixed: float, stretch: float = 2.0, most: int = 256) -> PrefillPace:
    """After steps of ``fixed + rows`` seconds were measured."""
    cost = StepCost()
    for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
        cost.observe(rows, fixed + rows)
    return PrefillPace(cost, most, stretch, BLOCK)


def test_nobody_waits_so_prompts_get_all() -> None:
    assert pace(10.0).budget(0) == 256


def test_a_step_takes_at_most_twice_as_long() -> None:
    for replies in (1, 4, 16, 40):
        made = pace(30.0)
        budget = made.budget(replies)
        alone = made.cost.seconds(replies)
        assert made.cost.seconds(replies + budget) <= 2 * alone
        assert made.cost.seconds(replies + budget + BLOCK) > 2 * alone


def test_a_block_goes_on_in_any_case() -> None:
    assert pace(0.0).budget(1) == BLOCK


@pytest.mark.parametrize("made", [pace(1.0, stretch=0.0), PrefillPace(StepCost(), 256, 2.0, BLOCK)])
def test_without_a_bound_or_a_measurement_the_setting_counts(made: PrefillPace) -> None:
    assert made.budget(16) == 256


def test_rows_that_cost_nothing_are_all_taken() -> None:
    assert pace(100_000.0).budget(16) == 256


def pieces_of(prompt: int) -> list[int]:
    """Of a prompt that comes beside a reply, when a step may hold 64 tokens."""
    scheduler = Scheduler(
        BlockManager(100, BLOCK),
        max_running=4,
        max_waiting=4,
        prefill_chunk_tokens=64,
        pace=pace(10.0, most=64),
    )
    short = Sequence("short", (1, 2, 3), 60)
    scheduler.add(short)
    scheduler.commit(scheduler.schedule(), [[7]])
    scheduler.add(Sequence("long", tuple(range(100, 100 + prompt)), 1))
    pieces = []
    while short in scheduler.running and len(pieces) < 50:
        step = scheduler.schedule()
        pieces += [work.end - work.start for work in step.works if not work.decodes]
        assert any(work.decodes for work in step.works)
        scheduler.commit(step, [[7] for _ in step.sampling])
    assert sum(pieces) == prompt
    return pieces


def test_a_long_prompt_beside_replies_goes_in_pieces_and_ends() -> None:
    pieces = pieces_of(90)
    assert max(pieces) <= 12  # twice a step of 11 seconds
    assert all(piece % BLOCK == 0 for piece in pieces[:-1])


def test_a_prompt_that_one_step_can_hold_is_not_paced() -> None:
    assert pieces_of(60) == [60]
