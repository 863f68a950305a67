"""The engine's checks on the real model (bench/engine), short: in full they take minutes."""

from pathlib import Path

import pytest

from bench.engine import __main__ as checks
from bench.engine import identity


@pytest.mark.model
async def test_float32_says_what_generate_says_on_real_prompts(
    transcripts: Path, data_dir_with_base: Path
) -> None:
    """Chunked prompts that share beginnings, three adapters and none, drafts, all at once."""
    data = str(transcripts / "star-val.jsonl.gz")
    found = await identity.check(checks.parse(["--check", "identity", "--quick", "--data", data]))
    assert found["identical"] == found["prompts"] >= 8
    assert found["cached_tokens"] > 0
    assert found["blocks_left"] == 0


def test_every_check_is_there() -> None:
    for name in checks.CHECKS:
        parsed = checks.parse(["--check", name, "--runtime", "openvino", "--set", "max_running=4"])
        assert (parsed.check, parsed.settings) == (name, {"max_running": "4"})
