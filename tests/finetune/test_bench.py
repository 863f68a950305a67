"""The training benchmark runs, compares like with like, and ends with a line of JSON."""

import json
from pathlib import Path

import pytest

from bench.training import main
from tests.finetune.data import write_dialogues
from tests.finetune.models import save_llama


def test_the_loops_do_the_same_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_dialogues(tmp_path / "train.jsonl", range(20))
    base = save_llama(tmp_path / "base")
    options = ["--data", str(data), "--base", str(base), "--dtype", "float32", "--threads", "1"]
    main(["--quick", *options])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["bench"] == "training"
    assert result["steps"] == 2
    for loop in ("plain", "lean", "ours"):
        assert result[f"{loop}_tokens_per_s"] > 0
    assert result["largest_loss_difference"] < 1e-3
