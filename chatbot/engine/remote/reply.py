"""One reply on its way from the server to the one who asked for it."""

import asyncio
import math
from typing import Any

from chatbot.engine.interface import Chunk, FinishReason, GenerationRequest, Usage
from chatbot.engine.remote.pieces import Piece
from chatbot.engine.torch.text import Detokenizer, StopStrings
from chatbot.errors import FrontdeskError

MOST_CHARACTERS = 256  # of a token, where only text tells how much a server wrote


class RemoteReply:
    """Everything known about a reply, over all calls that it took.

    ``queue`` holds a whole reply and its end: a server that says more than was asked is cut off,
    so a reader who never reads costs no more than that.
    """

    def __init__(
        self,
        request: GenerationRequest,
        max_tokens: int,
        tokenizer: Any,
        end_ids: tuple[int, ...],
        target: str | int | None,
    ) -> None:
        self.request = request
        self.max_tokens = max_tokens
        self.target = target
        self.finish: FinishReason | None = None
        self.cached_tokens = 0
        self.queue: asyncio.Queue[Chunk | FrontdeskError] = asyncio.Queue(
            MOST_CHARACTERS * max_tokens + 2
        )
        self._tokenizer = tokenizer
        self._end_ids = frozenset() if request.sampling.ignore_eos else frozenset(end_ids)
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(request.sampling.stop)
        self._half = ""  # the first half of a character that JSON cut in two
        self._text = ""  # what was received as text
        self._ids: list[int] = []  # what was received as ids
        self._earlier = 0  # tokens by the calls before this one
        self._told = 0  # tokens by the usage that this call told
        self._said_end = False  # the end is a token, too
        self._probability_sum, self._product, self._probabilities = 0.0, 1.0, 0

    # -- what came, and what to ask for next

    @property
    def begun(self) -> bool:
        return bool(self._ids or self._text or self._half)

    @property
    def can_go_on(self) -> bool:
        """Whether another call may write what is missing: never twice the same text, and never a
        seeded draw, whose second half would be another one."""
        params = self.request.sampling
        return not self.begun or params.temperature == 0 or params.seed is None

    @property
    def written(self) -> list[int]:
        """The reply so far as ids."""
        if self._ids or not self._text:
            return self._ids
        found: list[int] = self._tokenizer.encode(self._text, add_special_tokens=False)
        return found

    @property
    def tokens(self) -> int:
        """Tokens so far, as exactly as the server lets us know."""
        if self._ids or self._told:
            return len(self._ids) or self._told
        return len(self.written) + self._said_end

    def begin_call(self) -> list[int]:
        """The reply so far as ids: what the next call's prompt ends with."""
        written = self.written
        self._earlier, self._told = len(written), 0
        return written

    def take(self, piece: Piece) -> Chunk | None:
        """What a piece adds, if anything; sets ``finish`` when the reply has its end."""
        self._note(piece)
        if self.finish is not None:
            return None
        chunk = self._chunk(piece)
        if self.finish is None:
            self.finish = piece.finish
            self._said_end = piece.finish == "end"
        return chunk

    def _note(self, piece: Piece) -> None:
        for value in piece.logprobs:
            if math.isfinite(value):
                self._probability_sum += math.exp(min(value, 0.0))
                self._product *= math.exp(min(value, 0.0))
                self._probabilities += 1
        if piece.cached_tokens is not None:
            self.cached_tokens = max(self.cached_tokens, piece.cached_tokens)
        if piece.completion_tokens is not None:
            self._told = self._earlier + piece.completion_tokens

    def _chunk(self, piece: Piece) -> Chunk | None:
        ids = piece.token_ids or ()
        if ids:
            room = self.max_tokens - len(self._ids)
            if len(ids) > room:  # more than was asked
                ids, self.finish = ids[:room], "length"
            self._ids += ids
            shown = (token for token in ids if token not in self._end_ids)
            text = "".join(self._detokenizer.push(token) for token in shown)
        elif piece.text and piece.token_ids is None:
            text = self._whole(piece.text)
            if len(self._text) > MOST_CHARACTERS * self.max_tokens:
                self.finish = "length"
                return None
        else:
            return None
        text, stopped = self._stops.push(text)
        if stopped:
            self.finish, self._stops = "end", StopStrings(())
            self._detokenizer, self._half = Detokenizer(self._tokenizer), ""
        return Chunk(text, ids) if text or ids else None

    def _whole(self, text: str) -> str:
        """Text without half a surrogate pair, which JSON can cut in two."""
        text = self._half + text
        self._half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
        text = _joined(text[: len(text) - len(self._half)])
        self._text += text
        return text

    # -- the end

    def last(self, reason: FinishReason) -> Chunk:
        """The last chunk: text that was held back, usage and confidence."""
        rest, stopped = self._stops.push(self._detokenizer.flush() + _joined(self._half))
        if stopped:
            reason = "end"
        else:
            rest += self._stops.flush()
        confidence = probability = None
        if self._probabilities:
            confidence = self._probability_sum / self._probabilities
            probability = self._product
        usage = Usage(len(self.request.prompt_ids), self.cached_tokens, self.tokens)
        return Chunk(rest, (), reason, usage, confidence, probability)


def _joined(text: str) -> str:
    """Surrogate pairs as the characters that they mean, lone ones as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class RemoteReplyStream:
    """The reading end: see :class:`chatbot.engine.interface.ReplyStream`."""

    def __init__(self, reply: RemoteReply, task: "asyncio.Task[None]") -> None:
        self._reply = reply
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._ended = False

    def __aiter__(self) -> "RemoteReplyStream":
        return self

    async def __anext__(self) -> Chunk:
        if self._ended:
            raise StopAsyncIteration
        item = await self._reply.queue.get()
        if isinstance(item, FrontdeskError):
            self._ended = True
            raise item
        self._ended = item.finish_reason is not None
        return item

    async def aclose(self) -> None:
        if not self._ended:
            self._ended = True
            self._task.cancel()

    def __del__(self) -> None:
        if not self._ended and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)
