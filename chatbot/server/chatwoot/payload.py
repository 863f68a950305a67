"""What Chatwoot's webhooks say, as far as it is used. Unknown fields are left alone: its releases
add some all the time."""

import hashlib
import hmac
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from chatbot.errors import NotAuthenticated, RequestRefused

Model = TypeVar("Model", bound=BaseModel)
Status = Literal["pending", "open", "snoozed", "resolved"]
_TYPES = {0: "incoming", 1: "outgoing", 2: "activity", 3: "template"}  # numbers in some payloads


def _kept(value: Any) -> Any:
    """A text without what SQL and UTF-8 cannot hold."""
    if not isinstance(value, str):
        return value
    return value.replace("\x00", "").encode(errors="replace").decode()


Words = Annotated[str | None, BeforeValidator(_kept)]


class Person(BaseModel):
    id: int | None = None
    name: Words = None
    type: str | None = None  # user, agent_bot, contact ...


class Meta(BaseModel):
    sender: Person | None = None
    assignee: Person | None = None


class Conversation(BaseModel):
    """``id`` is the number that Chatwoot's addresses use."""

    id: int = Field(ge=1)
    status: Status
    meta: Meta = Meta()


class Account(BaseModel):
    id: int


class Message(BaseModel):
    """Of ``message_created``."""

    id: int = Field(ge=1)
    content: Words = None
    message_type: Annotated[str, BeforeValidator(lambda value: _TYPES.get(value, value))]
    private: bool = False
    sender: Person | None = None
    conversation: Conversation
    account: Account | None = None


def read_message(body: Any) -> Message:
    """Raises RequestRefused."""
    return _read(Message, body)


def read_conversation(body: Any) -> Conversation:
    """The conversation that an event is about: the body itself. Raises RequestRefused."""
    return _read(Conversation, body)


def _read(model: type[Model], body: Any) -> Model:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RequestRefused(f"not a webhook of Chatwoot: {place}: {first['msg']}") from None


def check_signature(
    secret: str, signature: str, timestamp: str, body: bytes, now: float, stale_seconds: float
) -> None:
    """``X-Chatwoot-Signature``: ``sha256=`` and the hex HMAC-SHA256 of ``{timestamp}.{body}``.

    Raises:
        NotAuthenticated: it is missing or wrong, or the timestamp is not of now: sent again by
            somebody who saw it.
    """
    signed = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    if not hmac.compare_digest(f"sha256={signed.hexdigest()}".encode(), signature.encode()):
        raise NotAuthenticated("the signature of this webhook is missing or wrong")
    if not timestamp.isdecimal() or abs(now - int(timestamp)) > stale_seconds:
        raise NotAuthenticated(
            f"this webhook was signed more than {stale_seconds:g} seconds ago, or clocks differ"
        )
