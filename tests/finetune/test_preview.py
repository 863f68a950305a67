"""What the console is told of the next run: the same data set that the run will build."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chatbot.settings import Settings
from finetune.preview import preview

REVIEWED = {
    "messages": [
        {"role": "user", "content": "Do you ship to Malta?"},
        {"role": "assistant", "content": "We do.", "weight": 1},
    ],
    "meta": {"id": "c-1#2", "correction": True},
}


def _write(path: Path, questions: Sequence[str]) -> Path:
    lines = [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": f"About {question}: yes."},
            ]
        }
        for question in questions
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _settings(folder: Path, **files: Path) -> Settings:
    return Settings(data_dir=folder, **{name: str(path) for name, path in files.items()})  # type: ignore[arg-type]


def test_nothing_to_train_on_is_an_answer(tmp_path: Path) -> None:
    found = preview({}, [], _settings(tmp_path))
    assert not found["can_start"]
    assert "no dialogue to train on" in found["reason"]
    assert (found["dialogues"], found["fingerprint"]) == (0, "")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    found = preview({}, [REVIEWED], _settings(tmp_path, train_data=tmp_path / "gone.jsonl"))
    assert not found["can_start"]
    assert "gone.jsonl" in found["reason"]


def test_a_missing_base_model_is_named(tmp_path: Path) -> None:
    file = _write(tmp_path / "train.jsonl", ["tea"])
    settings = Settings(
        data_dir=tmp_path, train_data=str(file), train_eval_data=str(file), base_model="./none"
    )
    found = preview({}, [REVIEWED], settings)
    assert not found["can_start"]
    assert "none" in found["reason"]
    assert (found["from_reviews"], found["corrections"]) == (1, 1)


@pytest.mark.model
def test_the_preview_is_what_the_run_builds(data_dir_with_base: Path, tmp_path: Path) -> None:
    """Same dialogues, same fingerprint, same tokens; with and without a held-out file."""
    from finetune.config import TrainConfig
    from finetune.train import prepare

    train = _write(tmp_path / "train.jsonl", [f"tea number {n}" for n in range(60)])
    held = _write(tmp_path / "held.jsonl", ["tea number 3", "coffee"])
    for n, eval_data in enumerate([(held,), ()]):
        settings = _settings(
            data_dir_with_base,
            train_data=train,
            **({"train_eval_data": held} if eval_data else {}),
        )
        found = preview({"limit": 50}, [REVIEWED], settings)
        config: Any = TrainConfig(
            run_id=f"run-{n}",
            data_dir=tmp_path,
            base="smollm2-135m",
            data=(train,),
            eval_data=eval_data,
            limit=50,
        )
        prepared = prepare(config, [REVIEWED])
        assert found["fingerprint"] == prepared.fingerprint
        assert found["dialogues"] == len(prepared.train)
        assert found["can_start"]
        assert found["tokens"] > 40 * 10
