"""Two replies at once: read both streams, hand out their lines in the order they come."""

import queue
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ui.answers import PlaygroundLine
from ui.api import ApiError

QUEUE_LINES = 256  # read ahead of the page, at most
PUT_SECONDS = 0.2


@dataclass
class Reply:
    """One reply as far as it has come. Seconds are counted from the sending."""

    version: str
    text: str = ""
    finish_reason: str = ""
    usage: dict[str, Any] | None = None
    seconds: float | None = None
    first_text_seconds: float | None = None
    error: str = ""

    @property
    def ended(self) -> bool:
        return bool(self.finish_reason or self.error)

    def take(self, line: PlaygroundLine | ApiError, elapsed: float) -> None:
        """Grow by one line of the stream."""
        if isinstance(line, ApiError):
            self.error = line.message
        elif line.type == "delta":
            if self.first_text_seconds is None:
                self.first_text_seconds = elapsed
            self.text += line.text
        elif line.type == "done":
            self.text = line.text or self.text
            self.finish_reason = line.finish_reason or "end"
            self.usage = line.usage
            self.seconds = line.seconds if line.seconds is not None else elapsed


@dataclass
class Turn:
    """A message and what each side replied."""

    text: str
    replies: dict[str, Reply]


def messages_for(turns: Sequence[Turn], side: str) -> list[dict[str, str]]:
    """The conversation so far as this side had it. A turn without any reply is left out whole:
    a prompt with two user messages in a row is not what the versions were trained on."""
    messages: list[dict[str, str]] = []
    for turn in turns:
        if text := turn.replies[side].text:
            messages.append({"role": "user", "content": turn.text})
            messages.append({"role": "assistant", "content": text})
    return messages


Item = tuple[str, PlaygroundLine | ApiError | None]


def merged(
    sources: Mapping[str, Iterator[PlaygroundLine]],
) -> Generator[tuple[str, PlaygroundLine | ApiError]]:
    """Lines of all ``sources``, each with its source's name, as they come. A source's ApiError
    is its last item. Closing the generator ends the reading."""
    lines: queue.Queue[Item] = queue.Queue(maxsize=QUEUE_LINES)
    stop = threading.Event()
    for name, source in sources.items():
        threading.Thread(target=_pump, args=(name, source, lines, stop), daemon=True).start()
    left = len(sources)
    try:
        while left:
            name, line = lines.get()
            if line is None:
                left -= 1
            else:
                yield name, line
    finally:
        stop.set()


def _pump(
    name: str, source: Iterator[PlaygroundLine], lines: "queue.Queue[Item]", stop: threading.Event
) -> None:
    try:
        for line in source:
            if not _put(lines, (name, line), stop):
                break
    except ApiError as error:
        _put(lines, (name, error), stop)
    finally:
        if isinstance(source, Generator):
            source.close()  # closes the connection: the server stops writing
        _put(lines, (name, None), stop)


def _put(lines: "queue.Queue[Item]", item: Item, stop: threading.Event) -> bool:
    """Wait for room; False once nobody reads any more."""
    while not stop.is_set():
        try:
            lines.put(item, timeout=PUT_SECONDS)
            return True
        except queue.Full:
            continue
    return False


def fill(
    replies: Mapping[str, Reply], sources: Mapping[str, Iterator[PlaygroundLine]]
) -> Iterator[str]:
    """Let ``replies`` grow from their streams; yields the name of the one that just grew."""
    began = time.monotonic()
    for name, line in merged(sources):
        replies[name].take(line, time.monotonic() - began)
        yield name
