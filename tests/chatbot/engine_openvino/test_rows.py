"""How the rows of an inference are laid out for the plugin's attention."""

import pytest

pytest.importorskip("openvino", reason="needs the extra: pip install 'frontdesk[openvino]'")

from chatbot.engine.openvino.rows import Layout, Rows
from chatbot.engine.torch.draft_policy import Draft
from chatbot.engine.torch.scheduler import Work
from chatbot.engine.torch.sequence import Sequence

SPARE = 99
LAYOUT = Layout(SPARE, threads=2, steady=True)


def work(start: int, end: int, draft: tuple[int, ...] = (), prompt: int = 64) -> Work:
    """Of a sequence whose prompt are the numbers from 100 on, and whose reply those after them."""
    sequence = Sequence("r", tuple(range(100, 100 + prompt)), max_tokens=9, blocks=[5, 7, 8])
    sequence.tokens += range(100 + prompt, 120 + prompt)
    return Work(sequence, start, end, True, True, Draft(draft, "", 1) if draft else None)


def values(rows: Rows) -> dict[str, list[int]]:
    return {name: tensor.data.tolist() for name, tensor in rows.inputs().items()}


def test_a_prompt_is_one_sequence() -> None:
    found = values(Rows([work(2, 40)], LAYOUT))
    assert found["tokens"] == list(range(102, 140))
    assert found["positions"] == list(range(2, 40))
    assert (found["past_lens"], found["subsequence_begins"]) == ([2], [0, 38])
    assert (found["block_indices"], found["block_indices_begins"]) == ([5, 7], [0, 2])
    assert found["max_context_len"] == 40


def test_the_only_token_that_is_left_of_a_prompt_has_another_one_behind_it() -> None:
    rows = Rows([work(31, 32), work(40, 41)], LAYOUT)
    found = values(rows)
    assert found["tokens"] == [131, 0, 140, 0]
    assert (found["past_lens"], found["subsequence_begins"]) == ([31, 40], [0, 2, 4])
    # where the block is full, what is behind it goes to the block that nobody is given
    assert (found["block_indices"], found["block_indices_begins"]) == ([5, SPARE, 5, 7], [0, 2, 4])
    assert rows.sampled == found["sampled"] == [0, 2]


def test_tokens_of_a_reply_are_sequences_of_their_own() -> None:
    rows = Rows([work(64, 65, draft=(1, 2)), work(10, 12)], LAYOUT)
    found = values(rows)
    assert found["tokens"] == [164, 1, 2, 110, 111]
    assert found["past_lens"] == [64, 65, 66, 10]
    assert found["subsequence_begins"] == [0, 1, 2, 3, 5]
    assert found["block_indices"] == [5, 7, 8] * 3 + [5]
    assert rows.sampled == [0, 1, 2, 4]


def test_a_quantized_cache_gets_the_rows_as_they_are() -> None:
    """It writes blocks as a whole: neither rows that share one, nor any to no purpose."""
    layout = Layout(SPARE, threads=4, steady=False)
    found = values(Rows([work(64, 65, draft=(1, 2))], layout))
    assert (found["past_lens"], found["subsequence_begins"]) == ([64], [0, 3])
    for start in (31, 64):  # of the prompt and of the reply
        assert values(Rows([work(start, start + 1)], layout))["tokens"] == [100 + start]
    assert values(Rows([], layout))["tokens"] == [0]  # the warm-up


def test_a_lone_row_has_company() -> None:
    rows = Rows([work(64, 65)], LAYOUT)
    found = values(rows)
    assert found["tokens"] == [164, 0]
    assert found["past_lens"] == [64, 0]
    assert found["block_indices"][-1] == SPARE
    assert rows.sampled == [0]
    assert len(found["sampled"]) == 2


@pytest.mark.parametrize(("threads", "spare"), [(1, 0), (2, 0), (3, 1), (4, 2), (16, 2)])
def test_fewer_sequences_than_threads_have_one_of_several_rows_among_them(
    threads: int, spare: int
) -> None:
    layout = Layout(SPARE, threads, steady=True)
    found = values(Rows([work(64, 65), work(70, 71)], layout))
    assert found["tokens"] == [164, 170, *[0] * spare]
    with_prompt = values(Rows([work(64, 65), work(2, 40)], layout))
    assert len(with_prompt["tokens"]) == 39
