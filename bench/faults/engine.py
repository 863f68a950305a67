"""A runtime for experiments with the rest of the product: it writes a text that depends on the
prompt alone, at a set pace, and goes on where an earlier attempt stopped, as a model would. The
last word of a reply is a checksum of the words before it: a reply that is torn, repeated or put
together from two shows it by itself."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from chatbot.engine.interface import Chunk, EngineStats, GenerationRequest, Usage
from chatbot.errors import EngineBusy

WORDS = (
    "fern",
    "grüßt",
    "漢字",
    "🙂",
    "e\u0301",
    "pot",
    "soil",
    "and",
    "water",
    "leaf",
    "🌱",
    "moss",
)
ASSISTANT = "Assistant:\n"  # what opens a reply in the plain chat form of chatbot.prompt
END = 256


def words_of(seed: str, count: int) -> list[str]:
    """The words of a reply, each with the space after it; the last one is the seal."""
    drawn = zlib.crc32(seed.encode())
    words = []
    for place in range(count - 1):
        drawn = zlib.crc32(f"{drawn}:{place}".encode())
        words.append(f"{WORDS[drawn % len(WORDS)]}{place} ")
    return [*words, f"#{zlib.crc32(''.join(words).encode()):08x}"]


def is_whole(text: str) -> bool:
    """Whether a reply's seal fits what stands before it."""
    body, mark, seal = text.rpartition("#")
    return mark == "#" and seal == f"{zlib.crc32(body.encode()):08x}"


class Bytes:
    """A tokenizer: one token a byte."""

    eos_token_id: int | None = END
    chat_template: Any = None

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(i for i in token_ids if i < END).decode(errors="replace")

    def __len__(self) -> int:
        return END + 1


class PacedEngine:
    """:class:`chatbot.engine.interface.Engine`. ``words`` a reply, ``seconds`` between two."""

    max_context = 8000

    def __init__(self, words: int, seconds: float, most_running: int = 512) -> None:
        self.tokenizer = Bytes()
        self._words = words
        self._seconds = seconds
        self._most = most_running
        self._running: dict[str, asyncio.Event] = {}  # set: stop it
        self._generated = 0
        self._adapters: dict[str, Path] = {}

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def load_adapter(self, name: str, directory: Path) -> None:
        self._adapters[name] = directory

    async def drop_adapter(self, name: str) -> None:
        self._adapters.pop(name, None)

    def submit(self, request: GenerationRequest) -> AsyncIterator[Chunk]:
        if len(self._running) >= self._most:
            raise EngineBusy("all places are taken", retry_after=self._words * self._seconds)
        self._running[request.request_id] = asyncio.Event()
        return self._write(request)

    async def _write(self, request: GenerationRequest) -> AsyncIterator[Chunk]:
        stopped = self._running[request.request_id]
        try:
            prompt = self.tokenizer.decode(list(request.prompt_ids))
            begun = prompt.rpartition(ASSISTANT)[2]
            text = "".join(words_of(prompt.removesuffix(begun), self._words))
            if not text.startswith(begun):
                raise AssertionError(f"{begun!r} is not how this reply begins")
            for word in _rest(text, len(begun)):
                await asyncio.sleep(self._seconds)
                if stopped.is_set():
                    yield Chunk("", (), "stopped", Usage(len(request.prompt_ids)), None)
                    return
                self._generated += 1
                yield Chunk(word, (1,))
            written = len(text) - len(begun)
            yield Chunk("", (), "end", Usage(len(request.prompt_ids), 0, written), 1.0)
        finally:
            self._running.pop(request.request_id, None)

    async def cancel(self, request_id: str) -> None:
        if request_id in self._running:
            self._running[request_id].set()

    def stats(self) -> EngineStats:
        return EngineStats(
            waiting=0,
            running=len(self._running),
            blocks_total=self._most,
            blocks_used=len(self._running),
            blocks_cached=0,
            prefill_tokens_computed=0,
            prefill_tokens_cached=0,
            generated_tokens=self._generated,
            preemptions=0,
            evictions=0,
            last_step_seconds=self._seconds,
            adapters=tuple(self._adapters),
        )


def _rest(text: str, place: int) -> list[str]:
    """What is left after ``place``, cut after spaces."""
    left = text[place:]
    return [part for part in left.replace(" ", " \0").split("\0") if part]
