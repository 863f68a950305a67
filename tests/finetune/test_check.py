"""The quality report of transcript files."""

import json
from pathlib import Path
from typing import Any

from finetune.transcripts.check import check_files
from finetune.transcripts.readers import Rejects
from tests.finetune.data import dialogue, write_dialogues

GERMAN = "Guten Tag, wo ist meine Bestellung geblieben? Ich warte schon seit zwei Wochen darauf."


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_everything_is_counted(tmp_path: Path) -> None:
    path = write_dialogues(tmp_path / "a.jsonl", range(6))
    extra = [
        dialogue(2),
        chat(("assistant", "Anyone there?")),
        chat(("user", GERMAN), ("assistant", "Moment, ich schaue sofort nach.")),
        chat(("user", "I am jo@example.com " * 500), ("assistant", "ok")),
        chat(("user", "only")),
    ]
    extra[3]["messages"][1]["weight"] = 0
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in extra)
        file.write("{\n")
    with Rejects(tmp_path / "rejects.jsonl") as rejects:
        quality = check_files([path], rejects, max_tokens=500)
    assert quality.dialogues == 10
    assert quality.agent_turns == sum(quality.roles[r] for r in ("assistant",))
    assert quality.messages == sum(quality.roles.values())
    assert quality.duplicates == {"exact": 1}
    assert (quality.one_sided, quality.nothing_to_learn, quality.too_long) == (1, 1, 1)
    assert quality.personal_data == {"EMAIL": 500}
    assert quality.dialogues_with_personal_data == 1
    assert quality.languages["en"] >= 7
    assert quality.languages["de"] == 1
    assert quality.rejected == {"no_agent_turn": 1, "malformed_json": 1}
    assert [line["line"] for line in quality.rejected_lines] == [11, 12]
    assert quality.rejects_file == str(tmp_path / "rejects.jsonl")
    assert not quality.tokens_counted
    assert 0 < quality.median_tokens < 500 < quality.longest_tokens < quality.tokens
    json.dumps(quality.as_dict())


def test_languages_are_guessed_the_same_every_time(tmp_path: Path) -> None:
    path = write_dialogues(tmp_path / "a.jsonl", range(20))
    with Rejects(tmp_path / "r.jsonl") as rejects:
        first, second = (check_files([path], rejects).languages for _ in range(2))
    assert first == second


def test_tokens_are_counted_where_a_tokenizer_is_at_hand(tmp_path: Path) -> None:
    path = write_dialogues(tmp_path / "a.jsonl", range(3))
    with Rejects(tmp_path / "r.jsonl") as rejects:
        quality = check_files([path], rejects, count_tokens=lambda d: len(d.messages))
    assert quality.tokens_counted
    assert quality.tokens == quality.messages
