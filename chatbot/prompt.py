"""The one prompt builder (design idea 4): conversation -> chat messages -> token ids.

Training, evaluation and serving all call :func:`encode_prompt` and :func:`encode_dialogue`, so
what a model was tuned on is, token for token, what it is asked at serving time.

Each message is rendered and tokenized on its own and the pieces are concatenated. So the ids of
a conversation are a prefix of the ids of the same conversation one turn later, whatever the
tokenizer merges: the KV cache of a turn serves the next one.
"""

from typing import Any, Literal, Protocol, TypedDict

Role = Literal["system", "user", "assistant", "tool"]


class ChatMessage(TypedDict):
    """One turn in the OpenAI chat shape. ``tool`` is a look-up's result, shown to the model."""

    role: Role
    content: str


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that the product uses."""

    eos_token_id: int | None
    chat_template: Any

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...
    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = ...) -> str: ...
    def __len__(self) -> int: ...
