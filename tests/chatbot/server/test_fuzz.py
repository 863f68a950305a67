"""Hostile frames against the real server: the short form of ``make fuzz``."""

import json
import logging
from pathlib import Path

from bench.fuzz import GOOD, Findings, Maker, _Listener, fuzz


async def test_hostile_frames_find_nothing(redis_url: str, tmp_path: Path) -> None:
    found = await fuzz(redis_url, tmp_path, frames=1500, seed=3)
    assert found.problems == []
    assert found.sent >= 1500
    assert {1007, 1009, 4400} <= found.closed.keys()
    assert 1011 not in found.closed


def test_the_fuzzer_makes_every_kind_of_frame_and_the_same_ones_again() -> None:
    made = {path: [Maker(1).make(path) for _ in range(3)] for path in GOOD}
    assert made == {path: [Maker(1).make(path) for _ in range(3)] for path in GOOD}
    maker = Maker(1)
    kinds = {maker.make("/v1/chat")[0] for _ in range(3000)}
    assert kinds == set(maker._kinds)
    json.loads(next(f.data for k, f in (maker.make("/v1/desk") for _ in range(99)) if k == "good"))


def test_the_fuzzer_hears_what_uvicorn_logs() -> None:
    found = Findings()
    listener = _Listener(found)
    listener.handle(logging.LogRecord("x", logging.ERROR, "", 0, "bad %s", ("luck",), None))
    assert "bad luck" in found.problems[0]
