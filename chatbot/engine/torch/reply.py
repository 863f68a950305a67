"""One reply on its way from the engine's thread to the one who asked for it."""

import asyncio
from dataclasses import dataclass

from chatbot.engine.interface import Chunk, FinishReason, Usage
from chatbot.engine.torch.sampling import Choice, TokenChooser
from chatbot.engine.torch.sequence import Sequence
from chatbot.engine.torch.text import Detokenizer, StopStrings
from chatbot.errors import FrontdeskError


@dataclass(eq=False, slots=True)
class Reply:
    """The scheduler's sequence, and what turns its tokens into chunks.

    ``queue`` holds ``max_tokens + 1`` items, which is all that a reply can ever put there.
    """

    sequence: Sequence
    chooser: TokenChooser
    detokenizer: Detokenizer
    stops: StopStrings
    queue: "asyncio.Queue[Chunk | FrontdeskError]"
    delivered: int = 0  # tokens of the reply that the chunks so far hold

    def advance(self, choice: Choice) -> Chunk:
        """The chunk of the tokens that were just committed; the last one if the sequence has
        ended, or at a token that completes a stop string: what comes after it does not count."""
        shown, taken = "", list[int]()
        for token, probability in zip(choice.tokens, choice.probabilities, strict=True):
            self.chooser.record(token, probability)
            self.delivered += 1
            taken.append(token)
            ended = token in self.sequence.end_ids
            text, stopped = self.stops.push("" if ended else self.detokenizer.push(token))
            shown += text
            if stopped:
                return self._last(shown, tuple(taken), "end")
        reason = self.sequence.finish_reason
        if reason is None:
            return Chunk(shown, tuple(taken))
        return self._flushed(shown, tuple(taken), reason)

    def stop(self) -> Chunk:
        """The last chunk of a reply that was cancelled."""
        return self._flushed("", (), "stopped")

    def _flushed(self, text: str, tokens: tuple[int, ...], reason: FinishReason) -> Chunk:
        rest, stopped = self.stops.push(self.detokenizer.flush())
        if stopped:
            return self._last(text + rest, tokens, "end")
        return self._last(text + rest + self.stops.flush(), tokens, reason)

    def _last(self, text: str, tokens: tuple[int, ...], reason: FinishReason) -> Chunk:
        sequence = self.sequence
        usage = Usage(len(sequence.prompt), sequence.cached_tokens, self.delivered)
        chooser = self.chooser
        return Chunk(text, tokens, reason, usage, chooser.confidence, chooser.probability)


class TorchReplyStream:
    """The reading end: see :class:`chatbot.engine.interface.ReplyStream`."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._ended = False

    def __aiter__(self) -> "TorchReplyStream":
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
        self._cancel()

    def __del__(self) -> None:
        self._cancel()

    def _cancel(self) -> None:
        # a flag that the engine's thread reads at its next step: needs no lock
        if not self._ended:
            self._ended = True
            self._reply.sequence.cancelled = True
