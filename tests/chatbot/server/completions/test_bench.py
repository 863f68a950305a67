"""The serving benchmark measures what it says, against the real app with a scripted engine."""

import json
from pathlib import Path

import pytest

from bench import load, serving
from bench.peers import Endpoint, running
from tests.chatbot.server.completions.conftest import TEXT, Desk


def _data(folder: Path) -> Path:
    said = ["Hello", "And now?", "Thanks"]
    messages = [{"role": role, "content": text} for text in said for role in ("user", "assistant")]
    path = folder / "val.jsonl"
    short = {"messages": messages[:2]}  # too few turns: left out
    path.write_text(json.dumps(short) + "\n" + json.dumps({"messages": messages}) + "\n")
    return path


async def test_chats_are_measured(desk: Desk, tmp_path: Path) -> None:
    url = f"{desk.server.url}/v1/"
    options = ["--chats", "3", "--turns", "2", "--data", str(_data(tmp_path)), "--key", desk.key]
    result = await load.run(load.parse([url, "live", *options, "--tokens", "9"]))
    numbers = load.summary(result)
    assert (numbers["replies"], numbers["errors"]) == (6, 0)
    assert numbers["reply_tokens"] == 6 * len(TEXT)
    assert len(numbers["ttft_p50_ms"]) == 2
    assert all(turn.text == TEXT for one in result.turns for turn in one)
    assert {request.sampling.max_tokens for request in desk.engine.requests} == {9}
    second = [prompt for prompt in desk.engine.prompts if "And now?" in prompt]
    assert len(second) == 3
    assert all("Hello" in prompt and TEXT in prompt for prompt in second)


async def test_what_fails_is_counted(desk: Desk, tmp_path: Path) -> None:
    url = f"{desk.server.url}/v1/"
    options = ["--chats", "2", "--turns", "2", "--data", str(_data(tmp_path)), "--key", "wrong"]
    numbers = load.summary(await load.run(load.parse([url, "live", *options])))
    assert (numbers["replies"], numbers["errors"]) == (0, 2)
    assert "401" in numbers["first_error"]
    assert "ours" in serving.row("ours", 2, numbers)  # also without a single reply


def test_peers_are_named_on_the_command_line() -> None:
    assert running("vllm=http://h:1/v1,m") == Endpoint("vllm", "http://h:1/v1", "m")
    assert running("x=http://h:1/v1,m,k").key == "k"
    for wrong in ("vllm", "vllm=http://h:1/v1", "=http://h,m", "vllm=h,m"):
        with pytest.raises(ValueError):
            running(wrong)
    parsed = serving.parse(["--quick", "--peer", "x=http://h:1/v1,m"])
    assert (parsed.chats, parsed.turns, parsed.peer[0].name) == ([16], 2, "x")
