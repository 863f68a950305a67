"""The engine's one seam: what a worker may ask of any runtime.

A runtime (``torch``, ``openvino`` or ``remote``) turns prompt token ids into a stream of
text. It knows requests, adapters and caches; it knows nothing of conversations.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from chatbot.prompt import Tokenizer

FinishReason = Literal["end", "length", "stopped"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. ``temperature == 0`` is greedy; the rest then has no effect
    but for ``repetition_penalty`` (CTRL, arXiv 1909.05858, as in transformers) and ``stop``.

    Raises:
        RequestRefused: a value outside its range; the message names it.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        from chatbot.errors import RequestRefused

        rules = {
            "max_tokens": self.max_tokens >= 1,
            "temperature": 0.0 <= self.temperature <= 5.0,
            "top_p": 0.0 < self.top_p <= 1.0,
            "top_k": self.top_k >= 0,
            "repetition_penalty": 0.5 <= self.repetition_penalty <= 5.0,
            "stop": len(self.stop) <= 16 and all(self.stop),
        }
        for name, holds in rules.items():
            if not holds:
                raise RequestRefused(f"{name}={getattr(self, name)!r} is out of range")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One reply to be written.

    ``adapter`` is a name given to :meth:`Engine.load_adapter`, or None for the bare base model.
    ``cache_salt`` keeps cached blocks apart: requests share a prefix only when adapter and salt
    are equal. Of the tokens from ``shared_tokens`` on, which are private to a conversation, they
    share blocks only when ``owner`` is equal too; None: the whole prompt may be shared.
    ``draft_scopes``: texts given to :meth:`Engine.teach` under these names may be drafted from
    (verified, so they never change what is written, only how fast).
    """

    request_id: str
    prompt_ids: tuple[int, ...]  # [prompt length]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    adapter: str | None = None
    cache_salt: str = ""
    shared_tokens: int | None = None
    owner: str = ""
    draft_scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request. ``cached_tokens`` of the prompt came from the KV cache; the other
    ``prompt_tokens - cached_tokens`` were prefilled."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a reply. ``text`` is whole UTF-8 (never half a character) and may be empty;
    the last chunk, and only it, has a ``finish_reason``, the usage, the confidence and the
    probability."""

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    confidence: float | None = None  # mean probability of the chosen tokens, 0..1
    probability: float | None = None  # of this very reply: the product of its tokens', 0..1


class ReplyStream(Protocol):
    """The chunks of one reply, an async iterator. Close it when you leave early
    (``contextlib.aclosing``): that cancels the request. A stream that is merely dropped is
    cancelled when it is collected."""

    def __aiter__(self) -> AsyncIterator[Chunk]: ...

    async def __anext__(self) -> Chunk: ...

    async def aclose(self) -> None:
        """Cancel the request unless it has ended. Safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class DraftCount:
    """Tokens since start that one source of drafts proposed, and those that stood."""

    source: str
    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for metrics."""

    waiting: int
    running: int
    blocks_total: int
    blocks_used: int  # held by running requests
    blocks_cached: int  # free but still holding a prefix
    prefill_tokens_computed: int  # since start
    prefill_tokens_cached: int
    generated_tokens: int
    preemptions: int
    evictions: int
    last_step_seconds: float
    adapters: tuple[str, ...]
    drafts: tuple[DraftCount, ...] = ()  # by source; empty where the runtime does not draft
    healthy: bool = True  # False: what the runtime needs is away, e.g. the model server


class Engine(Protocol):
    """What every runtime does. All methods may be called from one asyncio loop only."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The base model's tokenizer, for :mod:`chatbot.prompt`."""
        ...

    @property
    def max_context(self) -> int:
        """Most tokens that prompt and reply may have together."""
        ...

    async def start(self) -> None:
        """Load the base model. Raises BaseModelUnavailable."""
        ...

    async def close(self) -> None:
        """Cancel what runs, free everything. Safe to call twice."""
        ...

    async def load_adapter(self, name: str, directory: Path) -> None:
        """Make a PEFT adapter directory available under ``name``; a no-op if the name is taken
        (a name stands for one version, whose files never change).

        Raises:
            AdapterInvalid: the directory is not an adapter that fits the base model.
        """
        ...

    async def drop_adapter(self, name: str) -> None:
        """Take the name away at once and return when the adapter's last request has ended."""
        ...

    def submit(self, request: GenerationRequest) -> ReplyStream:
        """Queue the request and stream its reply. Closing the iterator cancels the request.

        Raises (before the first chunk):
            EngineBusy: the queue is full; carries ``retry_after`` seconds.
            RequestRefused: the prompt cannot fit, or the adapter is not loaded.
        """
        ...

    async def cancel(self, request_id: str) -> None:
        """End the request at the next step with ``finish_reason="stopped"``; unknown ids are
        ignored, since a request may just have ended."""
        ...

    def teach(self, scope: str, token_ids: Sequence[int], conversation: str | None) -> None:
        """Offer a reply's tokens [reply length] to drafts of requests with this scope. What is
        drafted is only what several ``conversation``s have in common; None: the text belongs to
        no single conversation and may be drafted at once. Kept in bounded memory, and never
        written anywhere. A runtime that does not draft ignores it."""
        ...

    def stats(self) -> EngineStats: ...
