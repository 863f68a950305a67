"""How much is drafted, by cost and by chance."""

import pytest

from chatbot.engine.torch.draft_policy import PROBE_EVERY, Chance, Draft, DraftPolicy, StepCost

DRAFT = Draft((1, 2, 3, 4, 5, 6, 7, 8), "prompt", 5)


def policy(fixed: float, for_each: float, chance: float) -> DraftPolicy:
    """One that has measured steps of ``fixed + rows * for_each`` seconds and drafts that stand
    with this chance."""
    made = DraftPolicy()
    for rows in (1, 2, 4, 8, 16, 32, 64, 128):
        made.cost.observe(rows, fixed + rows * for_each)
    seen = made._chances.setdefault(("prompt", 5), Chance())
    seen.stood, seen.tried = 1000 * chance, 1000
    return made


def own(chance: float) -> Chance:
    return Chance(20 * chance, 20)


def test_rows_that_cost_nothing_are_all_taken() -> None:
    assert policy(1.0, 0.0, 0.3).lengths([(DRAFT, own(0.3))], 1, 1) == [8]


def test_the_likelier_the_longer() -> None:
    lengths = [
        policy(10.0, 1.0, chance).lengths([(DRAFT, own(chance))], 1, 1)[0]
        for chance in (0.02, 0.5, 0.8, 0.95)
    ]
    assert lengths == sorted(lengths)
    assert lengths[0] == 0
    assert lengths[-1] == 8


def test_of_many_replies_only_the_likely_draft_under_full_load() -> None:
    """16 replies in a step of 10 + 16 rows: one row more costs 1 / 26 of the step and so must
    bring more than 16 / 26 of a token."""
    made = policy(10.0, 1.0, 0.6)
    pairs = [(DRAFT, own(0.95 if number < 4 else 0.4)) for number in range(16)]
    lengths = made.lengths(pairs, 16, 16)
    assert all(length > 0 for length in lengths[:4])
    assert lengths[4:] == [0] * 12
    assert made.least_chance(16, 16) == pytest.approx(16 / 26, rel=0.1)


def test_prompts_in_the_same_step_make_drafts_no_cheaper() -> None:
    made = policy(10.0, 1.0, 0.6)
    pairs = [(DRAFT, own(0.5)) for _ in range(16)]
    assert made.lengths(pairs, 16, 100) == made.lengths(pairs, 16, 16) == [0] * 16
    assert made.least_chance(16, 100) == pytest.approx(made.least_chance(16, 16), rel=0.1)


def test_a_first_step_that_took_long_makes_no_later_draft_cheap() -> None:
    """With drafts in every step no other of so few rows comes that could mend it."""
    made = policy(10.0, 1.0, 0.6)
    made.cost = StepCost()
    made.cost.observe(16, 500.0)
    for rows in (32, 64, 128):
        made.cost.observe(rows, 10.0 + rows)
    assert made.lengths([(DRAFT, own(0.5))] * 16, 16, 16) != [8] * 16
    assert made.cost.seconds(16) == 42.0


def test_the_length_is_the_best_there_is() -> None:
    """By trying every length."""
    made, chance = policy(5.0, 1.0, 0.8), own(0.8)
    expected = made.chance(DRAFT, chance)

    def rate(length: int) -> float:
        tokens = 1 + sum(expected**place for place in range(1, length + 1))
        return tokens / made.cost.seconds(1 + length)

    assert made.lengths([(DRAFT, chance)], 1, 1) == [max(range(9), key=rate)]


def test_it_tries_again_now_and_then() -> None:
    made = policy(0.0, 1.0, 0.01)
    pairs = [(DRAFT, own(0.01))]
    taken = [made.lengths(pairs, 16, 16)[0] for _ in range(3 * (PROBE_EVERY + 1))]
    assert sum(taken) == 3
    assert made.least_chance(16, 16) > 0


def test_chances_follow_what_was_verified() -> None:
    made, reply = DraftPolicy(), Chance()
    before = made.chance(DRAFT, reply)
    for _ in range(10):
        made.verified(DRAFT, reply, len(DRAFT.tokens))
    risen = made.chance(DRAFT, reply)
    assert before < risen
    assert made.chance(DRAFT, Chance()) > before  # others learn from it
    other = Draft(DRAFT.tokens, "replies", 5)
    assert made.chance(other, Chance()) == before
    for _ in range(10):
        made.verified(DRAFT, reply, 0)
    assert made.chance(DRAFT, reply) < risen


def test_the_cost_of_a_step_is_interpolated_rises_and_forgets_disturbances() -> None:
    cost = StepCost()
    cost.observe(4, 4.0)
    assert cost.seconds(4) == 4.0
    assert cost.seconds(8) > 4.0  # a guess
    cost.observe(16, 10.0)
    assert cost.seconds(10) == pytest.approx(7.0)
    cost.observe(64, 5.0)  # fewer rows are not dearer
    assert cost.seconds(16) == cost.seconds(64) == 5.0
    for _ in range(20):
        cost.observe(4, 4.0)
    cost.observe(4, 400.0)
    assert cost.seconds(4) < 5.0
    for _ in range(30):
        cost.observe(4, 2.0)
    assert cost.seconds(4) == pytest.approx(2.0, rel=0.05)
