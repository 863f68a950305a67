"""What servers and workers say to each other about completions, as JSON. Pure.

A server puts a :class:`Job` on the queue. The worker that takes it answers with events in the
server's own stream; all events that came up since its last write are one entry of it, a batch.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from chatbot import errors
from chatbot.prompt import ChatMessage


@dataclass(frozen=True, slots=True)
class Job:
    """One completion that is asked for. ``sampling`` are arguments of the engine's
    ``SamplingParams``; requests share cached prompts only within one ``salt``."""

    request_id: str  # of this attempt: a second one has another id
    server: str
    version: str
    messages: list[ChatMessage]
    sampling: dict[str, Any]
    salt: str

    def dump(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def load(cls, text: str) -> "Job":
        """Raises ValueError or TypeError: not a job, from another release perhaps."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Started:
    """A worker has the request."""


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The reply is complete. ``finish`` is end or length."""

    finish: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no (more) text. ``code`` is one of chatbot/errors.py."""

    code: str
    message: str
    retry_after: float


@dataclass(frozen=True, slots=True)
class Released:
    """The worker stops; it has not sent any text of this request."""


Event = Started | Text | Ended | Failed | Released
_KINDS: dict[str, type[Event]] = {"s": Started, "t": Text, "e": Ended, "x": Failed, "r": Released}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def dump_batch(events: list[tuple[str, Event]]) -> str:
    """``[[kind, request id, field ...], ...]``."""
    lines = [
        [_NAMES[type(event)], request_id, *(getattr(event, name) for name in event.__slots__)]
        for request_id, event in events
    ]
    return json.dumps(lines, ensure_ascii=False, separators=(",", ":"))


def load_batch(text: str) -> list[tuple[str, Event]]:
    """Raises ValueError, TypeError or KeyError: not a batch."""
    return [(request_id, _KINDS[kind](*fields)) for kind, request_id, *fields in json.loads(text)]


def failure(error: errors.FrontdeskError) -> Failed:
    retry_after = error.retry_after if isinstance(error, errors.Overloaded) else 0.0
    return Failed(error.code, str(error), retry_after)


def as_error(failed: Failed) -> errors.FrontdeskError:
    """The exception that a worker met, of the class that has its code."""
    kind = _BY_CODE.get(failed.code, errors.FrontdeskError)
    if issubclass(kind, errors.Overloaded):
        return kind(failed.message, retry_after=failed.retry_after)
    return kind(failed.message)


_BY_CODE: dict[str, type[errors.FrontdeskError]] = {
    kind.code: kind
    for kind in reversed([value for value in vars(errors).values() if isinstance(value, type)])
    if issubclass(kind, errors.FrontdeskError)
}
