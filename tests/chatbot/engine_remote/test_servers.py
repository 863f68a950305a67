"""What each kind of server is asked, and what it cannot do."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from chatbot.engine.interface import SamplingParams
from chatbot.engine.remote.client import Client
from chatbot.engine.remote.connect import _kind
from chatbot.engine.remote.servers import KINDS, Ask, Facts, LlamaCppServer, Server
from chatbot.errors import AdapterInvalid, RequestRefused
from chatbot.settings import Settings
from tests.chatbot.engine.helpers import collect, request, text_of
from tests.chatbot.engine_remote.conftest import PROMPT, TEXT, TOKENIZER, Connected
from tests.chatbot.engine_remote.model_server import ModelServer

FACTS = Facts("m", None, TOKENIZER, (256,), 264)
DRAW = SamplingParams(
    temperature=0.7, top_p=0.9, top_k=5, repetition_penalty=1.2, stop=("x",), seed=2**31 + 5
)


class Answers(Client):
    """A client that has been told the answers."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__(Settings(remote_url="http://127.0.0.1:1"))
        self.answers = answers

    async def get(self, path: str) -> Any:
        return self.answers.get(path)


def made(kind: str, answers: dict[str, Any] | None = None) -> Server:
    return KINDS[kind](Answers(answers or {}), FACTS)


def body(kind: str, sampling: SamplingParams = DRAW, **more: Any) -> dict[str, Any]:
    return made(kind).body(Ask(tuple(PROMPT), 9, sampling, **more))


def test_every_kind_gets_every_parameter_by_its_own_name() -> None:
    vllm, llama, transformers = (body(kind) for kind in ("vllm", "llamacpp", "transformers"))
    for found in (vllm, llama):
        assert found["prompt"] == PROMPT
        assert (found["temperature"], found["top_p"], found["top_k"]) == (0.7, 0.9, 5)
        assert found["min_p"] == 0.0  # no default of the server's
    assert vllm["repetition_penalty"] == llama["repeat_penalty"] == 1.2
    assert llama["repeat_last_n"] == -1
    assert transformers["prompt"] == "Say it: "
    assert json.loads(transformers["generation_config"]) == {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "repetition_penalty": 1.2,
        "eos_token_id": [256],
        "pad_token_id": 256,
    }
    for found in (vllm, llama, transformers, body("openai", SamplingParams(seed=2**31 + 5))):
        assert (found["max_tokens"], found["stream"], found["seed"]) == (9, True, 5)
        assert "stop" not in found  # found here, the same way for all


def test_greedy_and_endless_replies() -> None:
    plain = SamplingParams(ignore_eos=True)
    assert body("vllm", plain)["stop_token_ids"] == []
    assert body("vllm", plain)["ignore_eos"] is body("llamacpp", plain)["ignore_eos"] is True
    chosen = json.loads(body("transformers", plain)["generation_config"])
    assert chosen["do_sample"] is False
    assert chosen["eos_token_id"][0] > len(TOKENIZER)
    assert "seed" not in body("vllm", plain)


def test_salts_keep_caches_apart_or_are_refused() -> None:
    assert body("vllm", salt="s")["cache_salt"] == "s"
    assert "cache_salt" not in body("vllm")
    assert body("llamacpp", salt="s")["cache_prompt"] is False
    assert body("llamacpp")["cache_prompt"] is True
    with pytest.raises(RequestRefused, match="cache_salt"):
        made("openai").refuse(request(PROMPT, salt="s"))


@pytest.mark.parametrize("asked", [{"top_k": 3}, {"repetition_penalty": 1.1}, {"ignore_eos": True}])
def test_what_the_standard_does_not_have_is_refused_not_dropped(asked: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused, match=next(iter(asked))):
        made("openai").refuse(request(PROMPT, **asked))
    for kind in ("vllm", "llamacpp", "transformers"):
        made(kind).refuse(request(PROMPT, salt="s", **asked))


@pytest.mark.parametrize(
    ("owner", "described", "kind"),
    [
        ("vllm", None, "vllm"),
        ("llamacpp", None, "llamacpp"),
        ("local", {"paths": {"/load_model": {}, "/v1/models": {}}}, "transformers"),
        ("somebody", {"paths": {"/v1/models": {}}}, "openai"),
        ("somebody", None, "openai"),
        ("somebody", "<html>", "openai"),
    ],
)
async def test_the_kind_is_told_from_what_it_says(owner: str, described: Any, kind: str) -> None:
    cards = {"m": {"id": "m", "owned_by": owner}}
    assert await _kind(Answers({"/openapi.json": described}), cards) == kind


# -- adapters


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """What a server's own loader would read; ours only looks whether it is there."""
    directory = tmp_path / "versions" / "v1" / "adapter"
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text("{}")
    return directory


async def test_vllm_loads_an_adapter_and_unloads_it(
    connected: Connected, server: ModelServer, adapter: Path
) -> None:
    async with connected() as engine:
        await engine.load_adapter("v1", adapter)
        assert engine.stats().adapters == ("v1",)
        assert await text_of(engine, request(PROMPT, "v1")) == TEXT
        assert await text_of(engine, request(PROMPT)) == TEXT
        assert [call["model"] for call in server.calls] == ["v1", "talker"]
        await engine.drop_adapter("v1")
    assert server.adapter_calls == [
        ("/v1/load_lora_adapter", {"lora_name": "v1", "lora_path": str(adapter)}),
        ("/v1/unload_lora_adapter", {"lora_name": "v1"}),
    ]


async def test_the_server_may_see_the_data_directory_elsewhere(
    connected: Connected, server: ModelServer, adapter: Path, tmp_path: Path
) -> None:
    async with connected(data_dir=tmp_path, remote_data_dir="/mnt/frontdesk") as engine:
        await engine.load_adapter("v1", adapter)
    assert server.models["v1"] == "/mnt/frontdesk/versions/v1/adapter"


async def test_an_adapter_that_another_worker_loaded_is_used(
    connected: Connected, server: ModelServer, adapter: Path
) -> None:
    server.models["v1"] = str(adapter)
    server.models["v2"] = "/somebody/elses"
    async with connected() as engine:
        await engine.load_adapter("v1", adapter)
        assert server.adapter_calls == []
        with pytest.raises(AdapterInvalid, match="another adapter under the name v2"):
            await engine.load_adapter("v2", adapter)


async def test_an_adapter_that_the_server_forgot_is_loaded_again(
    connected: Connected, server: ModelServer, adapter: Path
) -> None:
    async with connected() as engine:
        await engine.load_adapter("v1", adapter)
        del server.models["v1"]  # a restart, or another worker's drop
        chunks = await collect(engine, request(PROMPT, "v1"))
        assert "".join(chunk.text for chunk in chunks) == TEXT
        assert len(server.adapter_calls) == 2


@pytest.mark.parametrize(
    ("loads", "message", "expected"),
    [
        (False, "", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        (True, "rank 64 is greater than 16", "does not take .* rank 64 is greater than 16"),
    ],
)
async def test_why_vllm_does_not_take_an_adapter(
    connected: Connected,
    server: ModelServer,
    adapter: Path,
    loads: bool,
    message: str,
    expected: str,
) -> None:
    server.loads, server.refused_adapter = loads, message
    async with connected() as engine:
        with pytest.raises(AdapterInvalid, match=expected):
            await engine.load_adapter("v1", adapter)
        assert engine.stats().adapters == ()


async def test_llama_server_has_adapters_by_file_name(adapter: Path) -> None:
    server = made("llamacpp", {"/lora-adapters": [{"id": 4, "path": "/x/v1.gguf"}]})
    target = await server.load_adapter("v1", adapter, PurePosixPath(adapter))
    assert target == 4
    assert body("llamacpp", target=target)["lora"] == [{"id": 4, "scale": 1.0}]
    assert body("llamacpp")["lora"] == []  # the base is the base, whatever was loaded
    with pytest.raises(AdapterInvalid, match=r"--lora v2\.gguf"):
        await server.load_adapter("v2", adapter, PurePosixPath(adapter))
    assert isinstance(server, LlamaCppServer)


async def test_another_server_s_adapters_are_its_models(adapter: Path) -> None:
    server = made("openai", {"/v1/models": {"data": [{"id": "m"}, {"id": "v1"}]}})
    seen = PurePosixPath(adapter)
    assert await server.load_adapter("v1", adapter, seen) == "v1"
    with pytest.raises(AdapterInvalid, match="cannot be loaded"):
        await server.load_adapter("v2", adapter, seen)
    with pytest.raises(AdapterInvalid, match="transformers serve has no adapters"):
        await made("transformers").load_adapter("v1", adapter, seen)
