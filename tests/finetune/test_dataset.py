"""The data set of a run: nothing held out in it, corrections in it, personal data not in it."""

import json
from pathlib import Path
from typing import Any

import pytest

from chatbot.errors import StorageFull, TranscriptError
from chatbot.prompt import end_of_turn_ids
from finetune.dataset import (
    Dataset,
    Source,
    build_dataset,
    encode_dialogues,
    fingerprint,
    load_dialogues,
    load_held_out,
    redact_held_out,
    save_dialogues,
)
from finetune.transcripts.openai_chat import dialogue_from
from finetune.transcripts.readers import Rejects
from tests.finetune.data import dialogue, write_dialogues
from tests.finetune.models import chatml_tokenizer


def build(tmp_path: Path, source: Source, *rest: Any) -> Dataset:
    with Rejects(tmp_path / "rejects.jsonl") as rejects:
        return build_dataset(source, rejects, *rest)


def reviewed(number: int, *, weight: int = 1, **meta: Any) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"reviewed question {number}"},
            {"role": "assistant", "content": "old", "weight": 0},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "content": f"better answer {number}", "weight": weight},
        ],
        "meta": meta,
    }


def test_files_and_reviews_come_together(tmp_path: Path) -> None:
    data = write_dialogues(tmp_path / "a.jsonl", range(10))
    found = build(
        tmp_path,
        Source((data,), limit=6),
        [reviewed(1, correction=True), reviewed(2), reviewed(3, weight=0)],
    )
    stats = found.stats
    assert (stats.dialogues, stats.from_files, stats.from_reviews) == (8, 6, 2)
    assert (stats.corrections, stats.nothing_to_learn) == (1, 1)
    assert found.dialogues[0].messages[-1]["content"] == "better answer 1"
    assert stats.agent_turns == sum(d.agent_turns for d in found.dialogues)


def test_no_held_out_dialogue_is_trained_on_wherever_it_comes_from(tmp_path: Path) -> None:
    data = write_dialogues(tmp_path / "a.jsonl", range(10))
    disguised = dialogue(3)
    disguised["messages"] = [
        {"role": m["role"], "content": m["content"].upper()}
        for m in disguised["messages"]
        if m["role"] != "system"
    ]
    held_out = [dialogue_from(disguised), dialogue_from(reviewed(1))]
    found = build(tmp_path, Source((data,)), [reviewed(1), reviewed(2)], held_out)
    assert found.stats.held_out == 2
    assert (found.stats.from_files, found.stats.from_reviews) == (9, 1)
    assert dialogue_from(dialogue(3)).messages not in [d.messages for d in found.dialogues]


def test_duplicates_and_bad_lines_are_counted(tmp_path: Path) -> None:
    data = write_dialogues(tmp_path / "a.jsonl", range(5))
    again = write_dialogues(tmp_path / "b.jsonl", range(3, 6))
    with again.open("a") as file:
        file.write("{broken\n")
    stats = build(tmp_path, Source((data, again))).stats
    assert (stats.dialogues, stats.duplicates, stats.rejected) == (
        6,
        {"exact": 2},
        {"malformed_json": 1},
    )
    [line] = (tmp_path / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["line"] == 4


def test_personal_data_is_redacted_and_counted(tmp_path: Path) -> None:
    value = reviewed(1)
    value["messages"][0]["content"] = "I am jo@example.com"
    found = build(tmp_path, Source(), [value])
    assert found.dialogues[0].messages[0]["content"] == "I am [EMAIL]"
    assert found.stats.redactions == {"EMAIL": 1}
    assert found.stats.redaction_examples == [
        {"before": "I am jo@example.com", "after": "I am [EMAIL]"}
    ]


def test_held_out_dialogues_are_redacted_like_the_others(tmp_path: Path) -> None:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"q{n} a{n}@example.com"},
                {"role": "assistant", "content": "Call 0117 496 0123."},
            ]
        }
        for n in range(4)
    ]
    path = tmp_path / "h.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]))
    with Rejects(tmp_path / "r.jsonl") as rejects:
        raw = load_held_out(Source((path,), limit=3), rejects)
    clean = redact_held_out(raw, frozenset())
    assert [d.messages[0]["content"] for d in clean] == ["q0 [EMAIL]", "q1 [EMAIL]", "q2 [EMAIL]"]
    assert clean[0].messages[1]["content"] == "Call 0117 496 0123."
    assert "[PHONE]" in redact_held_out(raw[:1], frozenset())[0].messages[1]["content"]


def test_the_fingerprint_says_what_not_in_which_order(tmp_path: Path) -> None:
    forward = build(tmp_path, Source((write_dialogues(tmp_path / "a.jsonl", range(4)),)))
    backward = build(tmp_path, Source((write_dialogues(tmp_path / "b.jsonl", range(3, -1, -1)),)))
    other = build(tmp_path, Source((write_dialogues(tmp_path / "c.jsonl", range(5)),)))
    assert forward.fingerprint == backward.fingerprint != other.fingerprint
    save_dialogues(tmp_path / "kept.jsonl", forward.dialogues)
    assert fingerprint(load_dialogues(tmp_path / "kept.jsonl")) == forward.fingerprint


def test_nothing_to_train_on_says_why(tmp_path: Path) -> None:
    data = write_dialogues(tmp_path / "a.jsonl", range(3))
    held_out = [dialogue_from(dialogue(n)) for n in range(3)]
    with pytest.raises(TranscriptError, match=r"no dialogue to train on in .*\(3 held out\)"):
        build(tmp_path, Source((data,)), (), held_out)
    with pytest.raises(TranscriptError, match="in the reviewed conversations"):
        build(tmp_path, Source())
    with pytest.raises(TranscriptError, match="reviewed conversation 1: message 1: role 'x'"):
        build(tmp_path, Source(), [{"messages": [{"role": "x", "content": "y"}]}])
    (tmp_path / "only-rejected.jsonl").write_text('{"messages": []}\n')
    with (
        pytest.raises(TranscriptError, match="no dialogue to evaluate on"),
        Rejects(tmp_path / "r.jsonl") as rejects,
    ):
        load_held_out(Source((tmp_path / "only-rejected.jsonl",)), rejects)


@pytest.mark.parametrize("max_tokens", [110, 150, 257, 1000])
def test_every_agent_turn_of_a_long_dialogue_is_learnt_once(max_tokens: int) -> None:
    messages = [{"role": "system", "content": "Be kind."}]
    for number in range(25):
        messages.append({"role": "user", "content": f"question {number} " + "so " * (number % 7)})
        messages.append({"role": "assistant", "content": f"answer no. {number}"})
    tokenizer = chatml_tokenizer()
    samples = encode_dialogues([dialogue_from({"messages": messages})], tokenizer, max_tokens)
    assert (len(samples) > 1) == (max_tokens < 1000)
    learnt = []
    for sample in samples:
        assert len(sample.ids) <= max_tokens
        assert tokenizer.decode(sample.ids).startswith("<|im_start|>system\nBe kind.")
        text = tokenizer.decode(
            [i for i, learn in zip(sample.ids, sample.loss_mask, strict=True) if learn]
        )
        learnt += text.split("<|im_end|>")[:-1]
        assert sample.ids[sample.spans[-1].end - 1] == end_of_turn_ids(tokenizer)[0]
    assert learnt == [f"answer no. {number}" for number in range(25)]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.jsonl"
    save_dialogues(path, [dialogue_from(dialogue(1))])
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageFull, match=r"no room left to write .*kept\.jsonl"):
        save_dialogues(path, [dialogue_from(dialogue(2))])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["kept.jsonl"]
