"""Engines that bench/serving.py measures. Each is an OpenAI-compatible server in processes of its
own, started by an async context manager that gives an :class:`Endpoint`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that answers. ``pid``: of the process whose whole tree belongs to it; None: it was
    running before, and its memory is not measured."""

    name: str
    url: str  # ends with /v1
    model: str
    key: str = "none"
    pid: int | None = None


def running(text: str) -> Endpoint:
    """An endpoint that somebody else started: ``NAME=URL,MODEL[,KEY]``. Raises ValueError."""
    name, equals, rest = text.partition("=")
    url, *others = rest.split(",")
    if not (name and equals and url.startswith("http") and 1 <= len(others) <= 2):
        raise ValueError(f"{text!r} is not NAME=URL,MODEL[,KEY]")
    return Endpoint(name, url.rstrip("/"), *others)
