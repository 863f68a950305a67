"""From token ids to text that may be shown: whole characters, and nothing of a stop string."""

from chatbot.prompt import Tokenizer

# What decoders show for bytes that are not (yet) a character.
REPLACEMENT = "\ufffd"
# A character has at most 4 bytes, so no more than 4 tokens; what is still incomplete after this
# many is not going to become one.
MOST_TOKENS_HELD = 16


class Detokenizer:
    """Text of a growing list of tokens, as it becomes certain.

    Decodes a short window instead of everything: the tokens of the last piece, for context
    (spaces depend on it), and those after it. ``"".join(pushed) + flush()`` equals the decoded
    whole.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # tokens already shown
        self._context_text = ""
        self._held: list[int] = []  # tokens not shown yet

    def push(self, token: int) -> str:
        """The text that this token completes; empty while it ends inside a character."""
        self._held.append(token)
        text = self._tokenizer.decode(self._context + self._held, skip_special_tokens=True)
        incomplete = text.endswith(REPLACEMENT) and len(self._held) < MOST_TOKENS_HELD
        if incomplete or len(text) <= len(self._context_text):
            return ""
        return self._show(text)

    def flush(self) -> str:
        """The text still held, at the end: half characters show as U+FFFD."""
        if not self._held:
            return ""
        return self._show(
            self._tokenizer.decode(self._context + self._held, skip_special_tokens=True)
        )

    def _show(self, text: str) -> str:
        shown = text[len(self._context_text) :]
        self._context, self._held = self._held, []
        self._context_text = self._tokenizer.decode(self._context, skip_special_tokens=True)
        return shown


class StopStrings:
    """Ends a text before the first stop string in it, however it is cut into pieces."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""  # a suffix that could be the start of a stop string

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may be shown now, whether a stop string was reached)."""
        if not self._stop:
            return text, False
        text = self._held + text
        hits = [place for place in map(text.find, self._stop) if place >= 0]
        if hits:
            self._held = ""
            return text[: min(hits)], True
        keep = max(_overlap(text, stop) for stop in self._stop)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """What was held back and turned out not to be a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a proper start of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
