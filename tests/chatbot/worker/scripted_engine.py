"""An engine that says what a test wrote for it, in pieces, and can be held anywhere."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from chatbot.engine.interface import Chunk, EngineStats, GenerationRequest, Usage
from chatbot.errors import AdapterInvalid
from chatbot.prompt import Tokenizer
from tests.chatbot.engine.helpers import ByteTokenizer

ASSISTANT = "Assistant:\n"  # what opens a reply in the plain chat form


class ScriptedEngine:
    """:class:`chatbot.engine.interface.Engine`. A reply is ``script(prompt)``; where the prompt
    ends inside a reply that was begun, only the rest is said, as a real model would."""

    max_context = 2000

    def __init__(self, script: Callable[[str], str], piece: int = 3) -> None:
        self.script = script
        self.piece = piece
        self.tokenizer: Tokenizer = ByteTokenizer()
        self.requests: list[GenerationRequest] = []
        self.prompts: list[str] = []
        self.cancelled: list[str] = []
        self.ended: list[str] = []
        self.adapters: dict[str, Path] = {}
        self.taught: list[tuple[str, tuple[int, ...], str | None]] = []
        self.refuse: list[Exception] = []  # raised by the next requests, one each
        self.hold_at: int | None = None  # characters after which replies wait for `go`
        self.go = asyncio.Event()
        self.running = 0
        self.most_running = 0

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def load_adapter(self, name: str, directory: Path) -> None:
        if not (directory / "adapter_model.safetensors").is_file():
            raise AdapterInvalid(f"{directory} is not an adapter")
        self.adapters[name] = directory

    async def drop_adapter(self, name: str) -> None:
        del self.adapters[name]

    def submit(self, request: GenerationRequest) -> AsyncIterator[Chunk]:
        if self.refuse:
            raise self.refuse.pop(0)
        self.requests.append(request)
        return self._say(request)

    async def _say(self, request: GenerationRequest) -> AsyncIterator[Chunk]:
        prompt = self.tokenizer.decode(list(request.prompt_ids))
        self.prompts.append(prompt)
        begun = prompt.rpartition(ASSISTANT)[2]
        text = self.script(prompt.removesuffix(begun))
        assert text.startswith(begun)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            place = len(begun)
            while place < len(text):
                if self.hold_at is not None and place >= self.hold_at:
                    await self.go.wait()
                await asyncio.sleep(0)
                if request.request_id in self.cancelled:
                    yield Chunk("", (), "stopped", Usage(len(request.prompt_ids), 0, place), None)
                    return
                yield Chunk(text[place : place + self.piece], (1,))
                place += self.piece
            usage = Usage(len(request.prompt_ids), 4, len(text) - len(begun))
            yield Chunk("", (), "end", usage, 0.5)
        finally:
            self.running -= 1
            self.ended.append(request.request_id)

    async def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        self.go.set()

    def teach(self, scope: str, token_ids: Sequence[int], conversation: str | None) -> None:
        self.taught.append((scope, tuple(token_ids), conversation))

    def stats(self) -> EngineStats:
        return EngineStats(
            waiting=0,
            running=self.running,
            blocks_total=100,
            blocks_used=10,
            blocks_cached=5,
            prefill_tokens_computed=40,
            prefill_tokens_cached=60,
            generated_tokens=7,
            preemptions=1,
            evictions=2,
            last_step_seconds=0.01,
            adapters=tuple(self.adapters),
        )
