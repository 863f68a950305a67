"""One event of a completion's stream, whoever sent it."""

import json
from dataclasses import dataclass
from typing import Any

from chatbot.engine.interface import FinishReason
from chatbot.engine.remote.sse import Garbage

# what servers call the end of a reply; anything else is not an end that the reply can have
ENDS: dict[str, FinishReason] = {"stop": "end", "eos_token": "end", "length": "length"}


class ServerFailed(Exception):
    """The server says that it failed in the middle of a reply."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What an event adds. ``token_ids`` is None where the server does not tell ids;
    ``logprobs``: of the chosen tokens, natural logarithm."""

    text: str = ""
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] = ()
    finish: FinishReason | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def has_content(self) -> bool:
        """Whether the model wrote something."""
        return bool(self.text or self.token_ids or self.finish)


def read_piece(data: str) -> Piece:
    """Read one event's JSON.

    Raises:
        Garbage: it is not a completion's event.
        ServerFailed: it reports an error, or an end such as "abort".
    """
    try:
        event = json.loads(data)
        if event.get("error"):
            raise ServerFailed(error_text(event))
        choice = event["choices"][0] if event.get("choices") else {}
        finish = choice.get("finish_reason")
        if finish is not None and finish not in ENDS:
            raise ServerFailed(f"finish_reason {finish!r}")
        ids = choice.get("token_ids")
        usage = event.get("usage") or {}
        details = usage.get("prompt_tokens_details") or {}
        return Piece(
            text=_text(choice),
            token_ids=None if ids is None else tuple(map(int, ids)),
            logprobs=_logprobs(choice.get("logprobs")),
            finish=None if finish is None else ENDS[finish],
            prompt_tokens=usage.get("prompt_tokens"),
            cached_tokens=details.get("cached_tokens"),
            completion_tokens=usage.get("completion_tokens"),
        )
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise Garbage(f"not a completion's event ({type(error).__name__})") from error


def _text(choice: dict[str, Any]) -> str:
    text = choice.get("text") or ""
    if not isinstance(text, str):
        raise TypeError("text")
    return text


def _logprobs(found: Any) -> tuple[float, ...]:
    """Of OpenAI's completions form (vLLM) or its chat form (llama.cpp)."""
    if not found:
        return ()
    if "content" in found:
        return tuple(float(entry["logprob"]) for entry in found["content"])
    return tuple(float(value) for value in found.get("token_logprobs") or () if value is not None)


def error_text(body: Any) -> str:
    """The message in an error's JSON, in any of the forms in use; short."""
    found = body.get("error", body.get("detail", "")) if isinstance(body, dict) else body
    if isinstance(found, dict):
        found = found.get("message", "")
    return str(found)[:300] if isinstance(found, str) else ""
