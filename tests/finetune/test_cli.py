"""The commands, as a person or a program calls them."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from chatbot.errors import (
    FrontdeskError,
    InputError,
    RunInterrupted,
    TrainingError,
    TranscriptError,
)
from finetune.cli import add_commands
from tests.finetune.data import write_dialogues
from tests.finetune.models import save_llama


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with train.jsonl, held-out.jsonl, base/ and data/, which is the data directory."""
    write_dialogues(tmp_path / "train.jsonl", range(24))
    write_dialogues(tmp_path / "held-out.jsonl", range(100, 103))
    save_llama(tmp_path / "base")
    for name, value in {"BASE_MODEL": "base", "DATA_DIR": "data", "TRAINER_THREADS": 1}.items():
        full = value if isinstance(value, int) else tmp_path / value
        monkeypatch.setenv(f"FRONTDESK_{name}", str(full))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str | Path) -> Result:
    app = typer.Typer()
    add_commands(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


TRAIN = ("train", "--data", "train.jsonl", "--eval-data", "held-out.jsonl", "--dtype", "float32")


def test_train_evaluate_and_the_registry(data: Path) -> None:
    result = json.loads(done(*TRAIN, "--max-steps", "2", "--eval-turns", "3", "--json"))
    assert result["registered"] is True
    assert result["training"]["steps"] == 2
    assert "loss" not in result["training"]
    run = data / "data" / "runs" / result["run_id"]
    lines = [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["phase"] == "train"] == [1, 2]
    report = json.loads(
        done(
            "evaluate",
            "--data",
            "held-out.jsonl",
            "--version",
            result["version_id"],
            "--limit-turns",
            "3",
            "--dtype",
            "float32",
            "--out",
            data / "out",
            "--json",
        )
    )
    assert report["models"]["candidate"]["perplexity"] == pytest.approx(
        result["models"]["candidate"]["perplexity"]
    )
    assert (data / "out" / "report.html").is_file()
    adapter = data / "data" / "artifacts" / "versions" / result["version_id"] / "adapter"
    text = done("evaluate", "--data", "held-out.jsonl", "--adapter", adapter, "--limit-turns", "3")
    assert "Perplexity" in text
    assert "report.html" in text


def test_the_run_id_is_said_first_and_a_finished_run_resumes_to_its_result(data: Path) -> None:
    text = done(*TRAIN, "--max-steps", "1", "--eval-turns", "1", "--limit", "4")
    run_id = text.split()[1]
    assert (data / "data" / "runs" / run_id).is_dir()
    assert "is a candidate" in text
    again = json.loads(done("train", "--resume", run_id, "--json"))
    assert again["run_id"] == run_id


def test_a_version_of_another_base_model_is_not_registered(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_llama(data / "other", seed=3)
    text = done(*TRAIN, "--base", data / "other", "--max-steps", "1", "--eval-turns", "1")
    assert "is not registered" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train"], "nothing to train on"),
        (["train", "--data", "none.jsonl"], "No such file"),
        ([*TRAIN, "--epochs", "0"], "epochs=0.0 is out of range"),
        ([*TRAIN, "--base", "./none"], "no directory ./none"),
        (["train", "--resume", "run-x"], "there is no run run-x"),
        (["train", "--resume", "run-x", "--epochs", "2"], "leave out --epochs"),
        ([*TRAIN, "--column", "x"], "write name=value"),
        (["evaluate", "--data", "held-out.jsonl", "--version", "v0"], "v0"),
        (["evaluate", "--data", "held-out.jsonl", "--adapter", "."], "no PEFT adapter"),
        (["transcripts", "check", "none.jsonl"], "No such file"),
        (["transcripts", "check", "train.jsonl", "--format", "x"], "choose openai"),
    ],
)
def test_errors_are_one_line_that_names_the_cause(
    arguments: list[str], says: str, data: Path
) -> None:
    result = call(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, FrontdeskError)
    assert says in str(result.exception)
    assert "\n" not in str(result.exception)


COMMAND = [sys.executable, "-m", "chatbot.cli"]


def test_an_error_exits_with_1_and_no_traceback(data: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "transcripts", "check", "none.jsonl"], capture_output=True, text=True, cwd=data
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: none.jsonl cannot be read")
    assert "Traceback" not in done.stderr


def test_control_c_once_keeps_everything(data: Path) -> None:
    arguments = [*COMMAND, *TRAIN, "--epochs", "50", "--eval-turns", "1"]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=data
    )
    try:
        wait_for(
            lambda: any('"train"' in p.read_text() for p in data.glob("data/runs/*/progress.jsonl"))
        )
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, output
    [run] = (data / "data" / "runs").iterdir()
    assert f"--resume {run.name}" in " ".join(output.split())
    assert "Traceback" not in output
    assert len(list(run.glob("checkpoints/step-*"))) == 1


def wait_for(holds: Any) -> None:
    deadline = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < deadline, "it did not come about in 90 seconds"
        time.sleep(0.05)


def test_check_as_table_and_as_json(data: Path) -> None:
    with (data / "train.jsonl").open("a") as file:
        file.write("{\n")
    text = done("transcripts", "check", "train.jsonl")
    assert "malformed_json" in text
    assert "train.jsonl, line 25" in text
    found = json.loads(done("transcripts", "check", "train.jsonl", "held-out.jsonl", "--json"))
    assert (found["dialogues"], found["tokens_counted"]) == (27, True)
    assert found["rejects_file"] == "train.jsonl.rejects.jsonl"
    assert (data / "train.jsonl.rejects.jsonl").is_file()


def test_convert(data: Path) -> None:
    table = data / "tickets.csv"
    table.write_text(
        "ticket,author,body\n1,Customer,I am jo@example.com\n1,Clerk,hello\n2,Alien,x\n",
        encoding="utf-8",
    )
    options = [
        "--column",
        "conversation=ticket",
        "--column",
        "role=author",
        "--column",
        "text=body",
    ]
    options += ["--role", "Clerk=assistant"]
    text = done("transcripts", "convert", table, data / "out.jsonl.gz", "--redact", *options)
    assert "1 dialogues written" in text
    assert "1 lines rejected" in text
    [line] = gzip.decompress((data / "out.jsonl.gz").read_bytes()).decode().splitlines()
    assert json.loads(line)["messages"] == [
        {"role": "user", "content": "I am [EMAIL]"},
        {"role": "assistant", "content": "hello"},
    ]
    assert "unknown_role" in (data / "out.jsonl.gz.rejects.jsonl").read_text()
    done("transcripts", "convert", table, data / "plain.jsonl", *options)
    assert "jo@example.com" in (data / "plain.jsonl").read_text()


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("x.jsonl/y.jsonl", "x.jsonl is no folder"),
        ("missing/y.jsonl", "missing does not exist"),
        ("/proc/y.jsonl", "No such file or directory"),
        ("pipe", "no regular file"),
        ("folder", "it is a folder"),
    ],
)
@pytest.mark.parametrize("command", ["convert", "preferences"])
def test_a_target_that_cannot_be_written_is_named(
    data: Path, command: str, target: str, says: str
) -> None:
    (data / "x.jsonl").write_text("kept")
    (data / "folder").mkdir()
    os.mkfifo(data / "pipe")
    arguments = ["transcripts", "convert", "train.jsonl"] if command == "convert" else [command]
    result = call(*arguments, target)
    assert isinstance(result.exception, InputError), result.exception
    assert str(result.exception).startswith(f"{target} cannot be written")
    assert says in str(result.exception)
    assert not (data / "missing").exists()
    assert (data / "x.jsonl").read_text() == "kept"
    assert (data / "pipe").is_fifo()


def test_rejected_lines_go_to_no_folder_that_is_missing(data: Path) -> None:
    for command in (["check", "train.jsonl"], ["convert", "train.jsonl", "out.jsonl"]):
        result = call("transcripts", *command, "--rejects", "missing/rejects.jsonl")
        assert isinstance(result.exception, InputError)
        assert "missing does not exist" in str(result.exception)
    assert not (data / "missing").exists()
    assert not (data / "out.jsonl").exists()


def test_check_fails_when_nothing_usable_is_left(data: Path) -> None:
    long = {"messages": [{"role": "assistant", "content": "x" * 1_000_000}]}
    (data / "long.jsonl").write_text(json.dumps(long) + "\n")
    silent = {"messages": [{"role": "assistant", "content": "hello", "weight": 0}]}
    (data / "silent.jsonl").write_text(json.dumps(silent) + "\n")
    for name, says in (("long", "message_too_long"), ("silent", "no agent turn to learn")):
        result = call("transcripts", "check", f"{name}.jsonl", "--json")
        assert isinstance(result.exception, TranscriptError)
        assert says in str(result.exception)
        assert json.loads(result.stdout)["files"] == [f"{name}.jsonl"]
    done("transcripts", "check", "long.jsonl", "train.jsonl")


@pytest.mark.parametrize("held_out", [[], ["--eval-data", "held-out.jsonl"]])
def test_a_run_without_data_says_why_and_leaves_no_folder(data: Path, held_out: list[str]) -> None:
    (data / "bad.jsonl").write_text('{"messages": [{"role": "alien", "content": "x"}]}\n' * 2)
    result = call("train", "--data", "bad.jsonl", *held_out)
    assert isinstance(result.exception, TranscriptError)
    assert "2 lines were rejected, first bad.jsonl" in " ".join(
        str(result.exception).replace(f"{data}/", "").split()
    )
    assert "unknown_role" in str(result.exception)
    assert list((data / "data").glob("runs/*")) == []


def test_a_run_that_fails_after_a_step_keeps_its_folder(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise TrainingError("the adapter cannot be written")

    monkeypatch.setattr("finetune.train.save_adapter", broken)
    result = call(*TRAIN, "--max-steps", "1", "--limit", "4")
    assert isinstance(result.exception, TrainingError), result.output
    [run] = (data / "data" / "runs").iterdir()
    assert (run / "config.json").is_file()


def test_a_run_that_is_stopped_before_its_first_step_can_be_resumed(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise RunInterrupted("stopped")

    monkeypatch.setattr("finetune.pipeline.train", stopped)
    assert call(*TRAIN).exit_code == 130
    assert len(list((data / "data" / "runs").iterdir())) == 1


@pytest.mark.model
def test_check_leaves_nothing_in_the_folder(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRONTDESK_BASE_MODEL")
    monkeypatch.delenv("FRONTDESK_DATA_DIR")
    before = sorted(data.iterdir())
    found = json.loads(done("transcripts", "check", "train.jsonl", "--json"))
    assert found["tokens_counted"]
    assert sorted(data.iterdir()) == before
