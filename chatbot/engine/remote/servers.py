"""The kinds of servers: how each is asked, and what each cannot do.

A request goes to ``/v1/completions``, which takes a finished prompt: :mod:`chatbot.prompt` is the
one prompt builder, a server's own chat template never is. Every sampling parameter is sent by
name, since servers have defaults of their own. What a server cannot do is refused.

Stop strings are not sent: they are found here, in the text, and end the request. So they mean the
same on every server.
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from chatbot.engine.interface import GenerationRequest, SamplingParams
from chatbot.engine.remote.client import LOAD_SECONDS, Broken, Client, UnknownModel
from chatbot.engine.remote.prompt_text import PromptText
from chatbot.errors import AdapterInvalid, BaseModelUnavailable, RequestRefused

SEEDS = 2**31  # the range that all servers take; seeds beyond it are folded into it


@dataclass(frozen=True, slots=True)
class Ask:
    """One call for a reply or the rest of one. ``target``: what ``load_adapter`` gave."""

    prompt_ids: tuple[int, ...]  # [prompt length]
    max_tokens: int
    sampling: SamplingParams
    target: str | int | None = None
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What connecting found out. ``end_ids``: tokens that end a reply."""

    model: str
    context: int | None  # tokens, where the server tells
    tokenizer: Any
    end_ids: tuple[int, ...]
    vocabulary: int


class Server:
    """Any OpenAI-compatible server: text in, text out, the standard's parameters only."""

    kind: ClassVar[str] = "openai"
    health: ClassVar[str] = "/v1/models"
    at_once: ClassVar[int | None] = None  # requests that it can serve side by side
    salted: ClassVar[bool] = False  # keeps cached prefixes apart by salt
    extended: ClassVar[bool] = False  # takes top_k, repetition_penalty and ignore_eos

    def __init__(self, client: Client, facts: Facts) -> None:
        self.client = client
        self.facts = facts
        self._prompts = PromptText(facts.tokenizer)

    def refuse(self, request: GenerationRequest) -> None:
        """Raise RequestRefused for what this server cannot do."""
        params = request.sampling
        asked = {
            "top_k": params.top_k != 0,
            "repetition_penalty": params.repetition_penalty != 1.0,
            "ignore_eos": params.ignore_eos,
        }
        for name, wanted in asked.items():
            if wanted and not self.extended:
                raise RequestRefused(f"{name}: the model server ({self.kind}) cannot do that")
        if request.cache_salt and not self.salted:
            raise RequestRefused(
                f"cache_salt: the model server ({self.kind}) does not promise to keep caches apart"
            )

    def body(self, ask: Ask) -> dict[str, Any]:
        """The request's JSON."""
        params = ask.sampling
        body: dict[str, Any] = {
            "model": ask.target or self.facts.model,
            "prompt": self._prompts.text(ask.prompt_ids),
            "max_tokens": ask.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if params.seed is not None:
            body["seed"] = params.seed % SEEDS
        return body

    async def count(self, text: str) -> list[int] | int | None:
        """The server's token ids of ``text``, or at least how many; None: it does not tell."""
        asked = Ask((), 1, SamplingParams(max_tokens=1))
        body = self.body(asked) | {"prompt": text, "stream": False}
        body.pop("stream_options", None)
        answer = await self.client.post("/v1/completions", body, LOAD_SECONDS)
        usage = answer.get("usage") if isinstance(answer, dict) else None
        count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        return None if count is None else int(count) - len(self._prompts.opening)

    async def load_adapter(self, name: str, directory: Path, seen_as: PurePosixPath) -> str | int:
        """Make the adapter available; what to put into :class:`Ask`. Raises AdapterInvalid."""
        if name in await model_cards(self.client):
            return name  # it serves adapters as models, by its own configuration
        raise AdapterInvalid(
            f"the model server ({self.kind}) has no model {name}, and adapters cannot be loaded "
            "into it: serve the adapter under that name, use vLLM, or set FRONTDESK_ENGINE"
        )

    async def unload_adapter(self, name: str) -> None: ...


class VllmServer(Server):
    """vLLM, or a router in front of several."""

    kind = "vllm"
    health = "/health"
    salted = extended = True

    def body(self, ask: Ask) -> dict[str, Any]:
        params = ask.sampling
        body = super().body(ask) | {
            "prompt": list(ask.prompt_ids),
            "top_k": params.top_k,
            "repetition_penalty": params.repetition_penalty,
            "ignore_eos": params.ignore_eos,
            "stop_token_ids": [] if params.ignore_eos else list(self.facts.end_ids),
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logprobs": 0,  # the chosen token's alone
            "return_token_ids": True,
        }
        if ask.salt:
            body["cache_salt"] = ask.salt
        return body

    async def count(self, text: str) -> list[int] | int | None:
        body = {"model": self.facts.model, "prompt": text, "add_special_tokens": False}
        return _tokens(await self.client.post("/tokenize", body))

    async def load_adapter(self, name: str, directory: Path, seen_as: PurePosixPath) -> str | int:
        card = (await model_cards(self.client)).get(name)
        if card is not None:  # by another worker, or by --lora-modules
            if card.get("root") not in (None, str(seen_as)):
                raise AdapterInvalid(
                    f"the model server has another adapter under the name {name}: "
                    f"{card['root']} instead of {seen_as}"
                )
            return name
        try:
            answer = await self.client.post(
                "/v1/load_lora_adapter",
                {"lora_name": name, "lora_path": str(seen_as)},
                LOAD_SECONDS,
            )
        except (RequestRefused, UnknownModel) as error:
            raise AdapterInvalid(f"vLLM does not take the adapter {seen_as}: {error}") from error
        except Broken as error:
            if error.away:
                raise
            raise AdapterInvalid(
                f"vLLM does not take the adapter {seen_as} ({error}). It must see that directory "
                "(FRONTDESK_REMOTE_DATA_DIR), and --max-lora-rank must reach the adapter's rank"
            ) from error
        if answer is None:
            raise AdapterInvalid(
                "this vLLM loads no adapters: start it with --enable-lora and with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment"
            )
        return name

    async def unload_adapter(self, name: str) -> None:
        await self.client.post("/v1/unload_lora_adapter", {"lora_name": name})


class LlamaCppServer(Server):
    """llama.cpp's ``llama-server``. Adapters are GGUF files given at its start, each named like
    the version, and chosen per request."""

    kind = "llamacpp"
    health = "/health"
    salted = extended = True

    def body(self, ask: Ask) -> dict[str, Any]:
        params = ask.sampling
        return super().body(ask) | {
            "model": self.facts.model,
            "prompt": list(ask.prompt_ids),
            "top_k": params.top_k,
            "min_p": 0.0,
            "typical_p": 1.0,
            "repeat_penalty": params.repetition_penalty,
            "repeat_last_n": -1,  # the whole context, as the penalty is meant
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "ignore_eos": params.ignore_eos,
            "n_probs": 1,
            # adapters that are not listed do not apply, whatever scale they were loaded with
            "lora": [] if ask.target is None else [{"id": ask.target, "scale": 1.0}],
            # it has no salt: a request that must share nothing computes its whole prompt
            "cache_prompt": not ask.salt,
        }

    async def count(self, text: str) -> list[int] | int | None:
        body = {"content": text, "add_special": False, "parse_special": True}
        return _tokens(await self.client.post("/tokenize", body))

    async def load_adapter(self, name: str, directory: Path, seen_as: PurePosixPath) -> str | int:
        found = await self.client.get("/lora-adapters") or []
        for adapter in found:
            if PurePosixPath(str(adapter.get("path", ""))).stem == name:
                return int(adapter["id"])
        raise AdapterInvalid(
            f"llama-server has no adapter {name}: convert {directory} with llama.cpp's "
            f"convert_lora_to_gguf.py to {name}.gguf and start it with --lora {name}.gguf"
        )


class TransformersServer(Server):
    """``transformers serve`` without ``--continuous-batching``: one reply at a time."""

    kind = "transformers"
    health = "/health"
    at_once = 1  # its thread serves one; and the seed is the process's, not the request's
    salted = extended = True  # it keeps no cache between requests

    def body(self, ask: Ask) -> dict[str, Any]:
        params = ask.sampling
        # an id that no model writes: None would be replaced by the model's own
        ends = [self.facts.vocabulary + SEEDS // 2] if params.ignore_eos else self.facts.end_ids
        chosen: dict[str, Any] = {
            "do_sample": params.temperature > 0,
            "repetition_penalty": params.repetition_penalty,
            "eos_token_id": list(ends),
            "pad_token_id": self.facts.end_ids[0] if self.facts.end_ids else 0,
        }
        if params.temperature > 0:
            chosen |= {
                "temperature": params.temperature,
                "top_p": params.top_p,
                "top_k": params.top_k,
            }
        body = super().body(ask) | {"generation_config": json.dumps(chosen)}
        for name in ("temperature", "top_p", "stream_options"):  # said above, or unknown to it
            del body[name]
        return body

    async def load_adapter(self, name: str, directory: Path, seen_as: PurePosixPath) -> str | int:
        raise AdapterInvalid(
            f"transformers serve has no adapters: it cannot serve {name}. Use vLLM, or another "
            "FRONTDESK_ENGINE"
        )


KINDS: dict[str, type[Server]] = {
    server.kind: server for server in (VllmServer, LlamaCppServer, TransformersServer, Server)
}


async def model_cards(client: Client) -> dict[str, dict[str, Any]]:
    """The models that the server lists, by id.

    Raises:
        BaseModelUnavailable: it does not list models: it is no such server.
    """
    found = await client.get("/v1/models")
    try:
        return {str(card["id"]): dict(card) for card in found["data"]}
    except (TypeError, KeyError, ValueError) as error:
        raise BaseModelUnavailable(
            f"{client.shown}/v1/models is not a list of models: FRONTDESK_REMOTE_URL must be an "
            "OpenAI-compatible server's address"
        ) from error


def _tokens(answer: Any) -> list[int] | None:
    if not isinstance(answer, dict) or "tokens" not in answer:
        return None
    return [int(token) for token in answer["tokens"]]
