"""From transcripts to a registered version; a full disk and a second try on the way."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chatbot.bootstrap import artifacts_dir
from chatbot.errors import RunActive, RunInterrupted, StorageFull
from chatbot.manifest import check_files, read_manifest
from chatbot.record.database import Database
from chatbot.settings import Settings
from chatbot.versions import Versions
from finetune import pipeline
from finetune.config import TrainConfig
from finetune.pipeline import Outcome, Subject, live_subject, run_pipeline
from finetune.progress import Progress
from finetune.publish import common_replies
from finetune.transcripts import Dialogue
from tests.finetune.data import write_dialogues
from tests.finetune.models import save_llama

Setup = tuple[TrainConfig, Settings]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    base = save_llama(tmp_path / "base")
    settings = Settings(data_dir=tmp_path / "data", base_model=str(base))
    config = TrainConfig(
        run_id="run-1",
        data_dir=settings.data_dir,
        base=str(base),
        data=(write_dialogues(tmp_path / "train.jsonl", range(20)),),
        eval_data=(write_dialogues(tmp_path / "held-out.jsonl", range(100, 104)),),
        max_steps=2,
        eval_turns=3,
        dtype="float32",
        threads=1,
    )
    return config, settings


def run(
    setup: Setup, live: Subject | None = None, **changes: Any
) -> tuple[Outcome, list[Progress]]:
    config, settings = setup
    seen: list[Progress] = []
    outcome = run_pipeline(replace(config, **changes), settings, live, seen.append, lambda: False)
    return outcome, seen


def test_a_run_becomes_a_registered_version(setup: Setup, database: Database) -> None:
    settings = setup[1]
    outcome, seen = run(setup)
    manifest = read_manifest(outcome.directory)
    check_files(outcome.directory, manifest.files)
    assert sorted(manifest.files) == [
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "replies.json",
        "report.html",
        "report.json",
    ]
    assert manifest.id == outcome.version_id == outcome.directory.name
    assert manifest.dataset_fingerprint == outcome.report["dataset"]["fingerprint"]
    assert manifest.metrics == outcome.report["models"]["candidate"]
    assert manifest.settings["rank"] == 16
    assert json.loads((outcome.directory / "report.json").read_text()) == outcome.report
    assert seen[0].phase == "prepare"
    assert {p.phase for p in seen} == {"prepare", "train", "evaluate", "publish"}
    versions = Versions(database, artifacts_dir(settings), settings)
    versions.ensure_base(settings.base_model)
    assert versions.register(outcome.directory).state == "candidate"
    assert versions.verify(outcome.version_id) == outcome.directory / "adapter"
    assert not (setup[0].directory / "checkpoints").exists()
    assert isinstance(json.loads((outcome.directory / "replies.json").read_text()), list)


def test_candidate_live_and_base_are_judged_once_each(setup: Setup, database: Database) -> None:
    settings = setup[1]
    versions = Versions(database, artifacts_dir(settings), settings)
    versions.ensure_base(settings.base_model)
    first, _ = run(setup, live_subject(versions, settings.base_model))
    models = first.report["models"]
    assert models["live"] == models["base"]
    assert models["candidate"]["perplexity"] != models["base"]["perplexity"]
    assert models["candidate"]["turns"] == 3
    versions.register(first.directory)
    versions.promote(first.version_id, "tester", "because", override=True)
    live = live_subject(versions, settings.base_model)
    second, seen = run(setup, live, run_id="run-2", seed=5)
    judged = {p.message for p in seen if p.phase == "evaluate"}
    assert judged == {second.version_id}  # live and base were judged in the first run
    assert second.report["models"]["live"] == models["candidate"]
    assert second.report["models"]["base"] == models["base"]


def test_common_replies_are_those_of_several_dialogues_the_most_frequent_last() -> None:
    def dialogue(*texts: str, weight: int = 1) -> Dialogue:
        replies = [{"role": "assistant", "content": text, "weight": weight} for text in texts]
        return Dialogue(({"role": "user", "content": "Hi!"}, *replies))  # type: ignore[arg-type]

    dialogues = [dialogue("Hello.", f"Your number is {n}.", "Bye.") for n in range(3)]
    dialogues.append(dialogue("Hello."))
    dialogues += [dialogue("Bad.", weight=0)] * 5
    dialogues.append(dialogue("Twice in one.", "Twice in one.", "Twice in one."))
    assert common_replies(dialogues) == ["Bye.", "Hello."]


def test_a_published_run_is_read_back(setup: Setup) -> None:
    first, _ = run(setup)
    again, seen = run(setup)
    assert again == first
    assert seen == []


def test_two_processes_never_work_on_one_run(setup: Setup) -> None:
    config, settings = setup
    inside: list[BaseException] = []

    def second(_progress: Progress) -> None:
        if not inside:
            with pytest.raises(RunActive, match="run-1 is being worked on") as caught:
                run(setup)
            inside.append(caught.value)

    run_pipeline(config, settings, None, second, lambda: False)
    assert inside
    assert run(setup)[1] == []


def test_without_held_out_files_a_tenth_is_held_out(setup: Setup, tmp_path: Path) -> None:
    data = write_dialogues(tmp_path / "many.jsonl", range(60))
    outcome, _ = run(setup, data=(data,), eval_data=())
    dataset = outcome.report["dataset"]
    assert 0 < dataset["held_out"] < 20
    assert dataset["dialogues"] + dataset["held_out"] == 60
    assert outcome.report["models"]["candidate"]["perplexity"] is not None


def test_a_run_stopped_while_judged_goes_on(setup: Setup) -> None:
    config, settings = setup
    phases: list[str] = []

    def stop() -> bool:
        return "evaluate" in phases

    def watch(progress: Progress) -> None:
        phases.append(progress.phase)

    with pytest.raises(RunInterrupted):
        run_pipeline(config, settings, None, watch, stop)
    outcome, seen = run(setup)
    assert not any(p.phase == "train" for p in seen)
    assert outcome.report["training"]["steps"] == 2


def full_disk(name: str) -> Callable[[int], None]:
    """An fsync that fails for files of this name, as on a disk without room."""

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").resolve()
        if name in path.name:
            raise OSError(28, "No space left on device")

    return fsync


@pytest.mark.parametrize("name", ["report.json", "report.html", "manifest.json"])
def test_a_full_disk_leaves_no_half_version(
    name: str, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = run(setup)
    before = sorted(first.directory.parent.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full_disk(name))
        with pytest.raises(StorageFull, match="no room left"):
            run(setup, run_id="run-2", seed=9)
    assert sorted(first.directory.parent.rglob("*")) == before
    check_files(first.directory, read_manifest(first.directory).files)
    second, _ = run(setup, run_id="run-2", seed=9)  # with room again, nothing is lost
    assert second.version_id != first.version_id
    check_files(second.directory, read_manifest(second.directory).files)


def test_a_disk_full_while_the_adapter_is_copied(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copytree(_source: Path, target: Path) -> None:
        target.mkdir()
        (target / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("finetune.publish.shutil.copytree", copytree)
        with pytest.raises(StorageFull):
            run(setup)
    assert list((artifacts_dir(setup[1]) / "versions").iterdir()) == []


def test_the_evidence_kept_is_of_the_same_data_and_adapter(setup: Setup) -> None:
    config, _ = setup
    jury = pipeline.Jury(config, [], [], lambda _: None, lambda: False)
    base = jury._key(Subject("base", None))
    other = pipeline.Jury(replace(config, base="other"), [], [], lambda _: None, lambda: False)
    assert base == jury._key(Subject("called otherwise", None))
    assert base != other._key(Subject("base", None))
