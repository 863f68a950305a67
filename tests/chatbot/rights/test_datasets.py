"""Data sets of runs lose a person's words; versions that learned them are named."""

import json
from pathlib import Path
from typing import Any

from sqlalchemy import select

from chatbot.record.clock import now_ms
from chatbot.record.tables import TrainingRun
from chatbot.rights.datasets import ChangedRun, forget, runs_with, trained_on
from chatbot.rights.erasure import Eraser
from chatbot.services import Services
from tests.chatbot.rights.conftest import ANNA, Talk
from tests.chatbot.versions import make_version

Json = dict[str, Any]


def dialogue(name: str, text: str, source: str = "review") -> Json:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]
    return {"messages": messages, "meta": {"id": name, "source": source}}


def make_run(data_dir: Path, name: str, *dialogues: Json, done: bool = True) -> Path:
    folder = data_dir / "runs" / name
    folder.mkdir(parents=True)
    text = "".join(json.dumps(one) + "\n" for one in dialogues)
    (folder / "train.jsonl").write_text(text)
    (folder / "held-out.jsonl").write_text("")
    example = {"before": "Canary", "after": "x"}
    (folder / "dataset.json").write_text(json.dumps({"redaction_examples": [example]}))
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    if done:
        (folder / "result.json").write_text(json.dumps({"version_id": f"v-{name}"}))
    return folder


def add_version(services: Services, name: str, **manifest: Any) -> None:
    """A registered version whose manifest says this of its data set."""
    directory = make_version(services.settings.data_dir / "artifacts", name)
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | manifest))
    services.versions.register(directory)


def test_exactly_a_person_s_dialogues_go(tmp_path: Path) -> None:
    lines = [dialogue("c1", "Canary"), dialogue("c1#4", "Canary too"), dialogue("c11", "other")]
    lines.append(dialogue("c1", "a file's own id", source="star"))
    folder = make_run(tmp_path, "run-1", *lines)
    untouched = make_run(tmp_path, "run-2", dialogue("c9", "other"))
    assert runs_with(tmp_path, ["c1"]) == ["run-1"]
    assert forget(tmp_path, ["c1"]) == [ChangedRun("run-1", 2, restarts=False)]
    assert forget(tmp_path, ["c1"]) == []
    left = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    assert left == lines[2:]
    assert "Canary" not in "".join(path.read_text() for path in folder.glob("*.json*"))
    assert "Canary" in (untouched / "dataset.json").read_text()
    assert (folder / "checkpoints").is_dir()


def test_a_run_that_is_not_done_begins_anew(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "run-1", dialogue("c1", "x"), dialogue("c2", "y"), done=False)
    assert forget(tmp_path, ["c1"]) == [ChangedRun("run-1", 1, restarts=True)]
    assert not (folder / "checkpoints").exists()
    assert forget(tmp_path / "nowhere", ["c1"]) == []


async def test_the_receipt_names_the_versions_that_saw_the_person(
    services: Services, eraser: Eraser, talk: Talk
) -> None:
    data_dir = services.settings.data_dir
    await talk("c1")
    listed = {"conversations": ["c0", "c1"], "from_reviews": 2}
    add_version(services, "v-saw", dataset=listed)
    add_version(services, "v-not", dataset={"conversations": ["c0"], "from_reviews": 1})
    add_version(services, "v-files", dataset={"from_reviews": 0})
    add_version(services, "v-unknown", dataset={"from_reviews": 3}, run_id="run-gone")
    make_run(data_dir, "run-old", dialogue("c1#2", "x"))
    add_version(services, "v-old", dataset={"from_reviews": 1}, run_id="run-old")
    before = trained_on(services.database, data_dir, ["c1"])
    receipt = await eraser.erase(ANNA, actor="ada", reason="asked")
    found = {version["version_id"]: version["conversations"] for version in receipt.versions}
    assert {version.version_id: version.conversations for version in before} == {
        "v-saw": 1,
        "v-unknown": None,
        "v-old": 1,
    }
    assert found["v-saw"] == 1
    assert found["v-unknown"] is None
    assert found["v-old"] == 1, "the run's data is gone now; what it said is kept in the receipt"
    assert "v-not" not in found
    assert receipt.runs == ["run-old"]
    # a training that was under way and ends later
    add_version(services, "v-late", dataset=listed)
    again = await eraser.receipt(receipt.id)
    assert "v-late" in {version["version_id"] for version in again.versions}
    assert services.versions.verify("v-saw") is not None  # nobody touched its directory


async def test_a_run_that_is_learning_the_words_is_cancelled(
    services: Services, eraser: Eraser, talk: Talk
) -> None:
    await talk("c1")
    with services.database.session() as session:
        session.add(
            TrainingRun(
                id="run-1",
                request_id="r",
                active=1,
                state="running",
                requested_by="ada",
                settings={},
                attempts=1,
                heartbeat_at=now_ms(),
                created_at=1,
            )
        )
    make_run(services.settings.data_dir, "run-1", dialogue("c1", "x"), done=False)
    receipt = await eraser.erase(ANNA, actor="ada", reason="asked")
    assert (receipt.cancelled_runs, receipt.runs, receipt.dataset_dialogues) == (
        ["run-1"],
        ["run-1"],
        1,
    )
    with services.database.session() as session:
        assert session.scalars(select(TrainingRun.cancel_requested)).all() == [True]
