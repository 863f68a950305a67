"""The serving benchmark measures what it says, against the real app with a scripted engine."""

import json
import math
from pathlib import Path

import pytest

from bench import load, serving
from bench.peers import Endpoint, Needs, PeerMissing, running
from bench.peers.gguf import gguf_name
from bench.peers.weights import Weights
from bench.texts import Text, perplexity
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
    # also without a single reply
    assert "ours" in serving.row("ours", "fixed", 2, numbers)


def test_peers_are_named_on_the_command_line() -> None:
    assert running("vllm=http://h:1/v1,m") == Endpoint("vllm", "http://h:1/v1", "m")
    assert running("x=http://h:1/v1,m,k").key == "k"
    for wrong in ("vllm", "vllm=http://h:1/v1", "=http://h,m", "vllm=h,m"):
        with pytest.raises(ValueError):
            running(wrong)
    parsed = serving.parse(["--quick", "--peer", "x=http://h:1/v1,m"])
    assert (parsed.chats, parsed.turns, parsed.peer[0].name) == ([16], 2, "x")


def test_peers_are_chosen_by_name() -> None:
    assert serving.parse([]).peers == []
    assert serving.parse(["--peers", "none"]).peers == []
    assert serving.parse(["--peers", "all"]).peers == list(serving.PEERS)
    assert serving.parse(["--peers", "vllm,generate"]).peers == ["vllm", "generate"]
    parsed = serving.parse(["--peer-python", "vllm=/opt/vllm/bin/python"])
    assert parsed.peer_python == {"vllm": Path("/opt/vllm/bin/python")}
    for wrong in (["--peers", "tgi"], ["--peer-python", "vllm"], ["--modes", "slow"]):
        with pytest.raises(SystemExit):
            serving.parse(wrong)


@pytest.mark.parametrize("name", ["openvino", "vllm", "llamacpp"])
async def test_a_peer_that_is_missing_is_an_error_that_says_how_to_install_it(
    name: str, tmp_path: Path
) -> None:
    nowhere = {name: tmp_path / "bin" / "python"}
    needs = Needs(tmp_path, 1, nowhere, llama_server=str(tmp_path / "llama-server"))
    with pytest.raises(PeerMissing, match="pip install") as missing:
        async with serving.PEERS[name](Weights(None, tmp_path), needs):
            pass
    assert f"--peer-python {name}=" in str(missing.value)


def test_perplexity_is_over_the_agents_tokens_alone() -> None:
    texts = [Text([5, 6, 7, 8], [0, 0, 1, 1]), Text([5, 9], [1, 1])]
    assert [text.places for text in texts] == [[2, 3], [1]]
    scores = {4: [-100.0, -1.0, -2.0], 2: [-6.0]}  # of all tokens but the first
    found = perplexity(texts, lambda text: text.of_agent(scores[len(text.ids)]))
    assert found == pytest.approx(math.exp(3))


def test_tensors_of_a_llama_have_their_names_in_gguf() -> None:
    assert gguf_name("model.embed_tokens.weight") == "token_embd.weight"
    assert gguf_name("model.layers.7.self_attn.o_proj.weight") == "blk.7.attn_output.weight"
    assert gguf_name("model.layers.0.post_attention_layernorm.weight") == "blk.0.ffn_norm.weight"
    with pytest.raises(KeyError):
        gguf_name("model.layers.0.self_attn.q_norm.weight")
