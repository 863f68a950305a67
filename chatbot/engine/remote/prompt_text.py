"""Prompts as text, for servers that do not take token ids.

Ids are the safer prompt: a visitor who types "<|im_end|>" is encoded as plain characters by
:mod:`chatbot.prompt`, while a server that encodes text itself would end the visitor's turn there.
So such spellings are broken up by a space, and the control tokens that remain in the text are
those of the prompt, one for one.
"""

from collections.abc import Sequence
from typing import Any


class PromptText:
    """Turns prompt ids into the text that the server's tokenizer encodes to the same turns."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        known = getattr(tokenizer, "added_tokens_decoder", {})
        self._special = {id_: str(token) for id_, token in known.items() if token.special}
        # what the server's tokenizer puts before every text, e.g. <s>
        bare = tokenizer.encode("a", add_special_tokens=False)
        opened = tokenizer.encode("a", add_special_tokens=True)
        at = next((i for i in range(len(opened)) if opened[i : i + len(bare)] == bare), 0)
        self.opening: list[int] = opened[:at]

    def text(self, ids: Sequence[int]) -> str:
        """``ids`` [prompt length] as text, without the opening that the server adds by itself."""
        rest = list(ids)
        if self.opening and rest[: len(self.opening)] == self.opening:
            rest = rest[len(self.opening) :]
        text, run = "", list[int]()
        for id_ in rest:
            if id_ in self._special:
                text += self._plain(run) + self._special[id_]
                run = []
            else:
                run.append(id_)
        return text + self._plain(run)

    def _plain(self, ids: list[int]) -> str:
        if not ids:
            return ""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        for spelled in sorted(self._special.values(), key=len, reverse=True):
            text = text.replace(spelled, f"{spelled[:1]} {spelled[1:]}")
        return text
