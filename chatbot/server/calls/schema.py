"""What comes in over ``/v1/assist``: bodies of HTTP and frames of the stream."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from chatbot.errors import ProtocolViolation
from chatbot.protocol import FactName, FactValue, Id, Ping, frame_problem
from chatbot.server.admin.common import SAFE_INT

_UNKEPT = re.compile("[\x00\ud800-\udfff]")
EARLIEST = 10**12  # Unix ms of 2001: what is less was meant in seconds


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _can_be_kept(cls, value: Any) -> Any:
        if not _kept(value):
            raise ValueError("it holds a NUL character or half a character, which cannot be kept")
        return value


def _kept(value: Any) -> bool:
    """Whether SQL and UTF-8 can hold every text in ``value``."""
    if isinstance(value, dict):
        return all(_kept(part) for item in value.items() for part in item)
    if isinstance(value, list):
        return all(_kept(part) for part in value)
    return not isinstance(value, str) or not _UNKEPT.search(value)


class CallBegin(_Strict):
    """``call_id``: what the telephony calls it; the same one again is the same session.
    ``agent``: who is on the phone. ``customer``: your stable id of the customer, as ``sub`` of an
    identity: their chats and calls are then one person's. ``language``: BCP 47."""

    site: str = Field(min_length=1, max_length=64)
    call_id: str = Field(min_length=1, max_length=200)
    agent: str = Field(min_length=1, max_length=64, pattern=r"^\S(.*\S)?$")
    customer: str | None = Field(None, min_length=1, max_length=256)
    language: str | None = Field(None, pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*$")
    attributes: dict[FactName, FactValue] = Field(default_factory=dict, max_length=30)


class ChatwootFind(_Strict):
    site: str = Field(min_length=1, max_length=64)
    account: int = Field(ge=1, le=SAFE_INT)
    conversation: int = Field(ge=1, le=SAFE_INT)


class Fragment(_Strict):
    """``at``: when it was said, Unix ms. A partial (``final: false``) may be replaced."""

    id: Id
    speaker: Literal["customer", "agent"]
    text: str
    at: Annotated[int, Field(strict=True, ge=EARLIEST)]
    final: StrictBool


class Fragments(_Strict):
    fragments: list[Fragment] = Field(min_length=1)


class FragmentsBody(Fragments):
    """A body of HTTP: ``{"fragments": [...]}``, or one fragment alone."""

    @model_validator(mode="before")
    @classmethod
    def _one(cls, body: Any) -> Any:
        alone = isinstance(body, dict) and "fragments" not in body
        return {"fragments": [body]} if alone else body


class AcceptedDraft(_Strict):
    """``text``: as the agent uses it, the draft's own or changed."""

    draft_id: Id
    text: str


class Feedback(_Strict):
    """``displayed``: the agent saw the set; ``rejected``: the draft that they turned down."""

    suggestions_id: Id
    displayed: StrictBool = False
    rejected: Id | None = None
    accepted: AcceptedDraft | None = None


class CallClose(_Strict):
    reason: str = Field(min_length=1, max_length=500)


class StreamHello(_Strict):
    """First frame. ``token``: an API key, a panel's token or a staff login's."""

    type: Literal["hello"]
    token: str = Field(max_length=4096)


class FragmentsSend(Fragments):
    """Answered with ``fragments.accepted``; ``request_id`` comes back in the answer."""

    type: Literal["fragments.send"]
    request_id: Id


class FeedbackSend(Feedback):
    """Answered with ``feedback.accepted``."""

    type: Literal["suggestion.feedback"]
    request_id: Id


class CloseSend(CallClose):
    """Answered with ``status``."""

    type: Literal["session.close"]
    request_id: Id


StreamFrame = Annotated[
    StreamHello | FragmentsSend | FeedbackSend | CloseSend | Ping, Field(discriminator="type")
]
_STREAM: TypeAdapter[StreamFrame] = TypeAdapter(StreamFrame)


def parse_stream_frame(text: str) -> StreamFrame:
    """Raises ProtocolViolation."""
    try:
        return _STREAM.validate_json(text)
    except ValidationError as error:
        raise ProtocolViolation(frame_problem(error)) from None
