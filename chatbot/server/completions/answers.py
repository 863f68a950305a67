"""A completion as JSON, whole and in pieces (OpenAI's ``chat.completion`` and its chunks)."""

import json
import secrets
import time
from typing import Any

from chatbot.completions.wire import Ended

FINISH = {"end": "stop", "length": "length"}
DONE = b"data: [DONE]\n\n"


def usage_of(end: Ended) -> dict[str, Any]:
    return {
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "total_tokens": end.prompt_tokens + end.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": end.cached_tokens},
    }


class Answer:
    """Makes the JSON of one completion. ``version`` is the one that wrote it."""

    def __init__(self, version: str, include_usage: bool) -> None:
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": version,
            "system_fingerprint": version,
        }
        self._include_usage = include_usage
        # most of a chunk is the same each time: only the text is put in between
        before, _, after = _dump(self._chunk({"content": "\x00"}, None)).partition('"\\u0000"')
        self._before, self._after = f"data: {before}", f"{after}\n\n"

    def whole(self, text: str, end: Ended) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": FINISH[end.finish],
        }
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage_of(end),
        }

    def first(self, text: str) -> bytes:
        return _event(self._chunk({"role": "assistant", "content": text}, None))

    def text(self, text: str) -> bytes:
        return (self._before + json.dumps(text, ensure_ascii=False) + self._after).encode()

    def last(self, end: Ended) -> bytes:
        """The chunk with the reason, the usage if it was asked for, and the end of the stream."""
        events = _event(self._chunk({}, FINISH[end.finish]))
        if self._include_usage:
            chunk = {**self._head, "object": "chat.completion.chunk", "choices": []}
            events += _event({**chunk, "usage": usage_of(end)})
        return events + DONE

    def _chunk(self, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        return {**chunk, "usage": None} if self._include_usage else chunk


def _event(value: dict[str, Any]) -> bytes:
    return f"data: {_dump(value)}\n\n".encode()


def _dump(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def error_event(body: dict[str, Any]) -> bytes:
    """An error in a stream, as OpenAI sends it: an event without choices."""
    return _event(body)
