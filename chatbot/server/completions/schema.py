"""What a chat completion may ask for. Every parameter is either obeyed or refused by name."""

from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError
from pydantic_core import ErrorDetails

from chatbot.errors import PromptTooLong
from chatbot.prompt import ChatMessage, Role
from chatbot.server.completions.errors import Refused
from chatbot.settings import Settings

MOST_MESSAGES = 2000
MOST_STOPS = 16
CHARS_PER_TOKEN = 32  # no text has fewer tokens than its characters over this: see _check_length

# OpenAI's parameters that are not obeyed, with the values that change nothing
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
# accepted, and of no effect: they describe who asks
IGNORED = ("metadata", "prompt_cache_key", "safety_identifier", "user")
MESSAGE_IGNORED = ("annotations", "audio", "function_call", "name", "refusal", "tool_calls")
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """``content`` is a text or a list of text parts."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part]
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: StrictBool = False
    include_obfuscation: Literal[False] = False


def _as_list(value: Any) -> Any:
    if value is not None and not isinstance(value, str | list):
        raise ValueError("a string, or a list of strings")
    return [value] if isinstance(value, str) else value


Stops = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=16)]
Number = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class ChatRequest(BaseModel):
    """What of a request is obeyed. Left out: the installation's own settings."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(min_length=1, max_length=64)
    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Number | None = Field(None, ge=1, description="Older name of the next.")
    max_completion_tokens: Number | None = Field(None, ge=1)
    temperature: Real | None = Field(None, ge=0, le=2)
    top_p: Real | None = Field(None, gt=0, le=1)
    stop: Annotated[Stops | None, BeforeValidator(_as_list)] = None
    seed: Number | None = Field(None, ge=-(2**63), lt=2**63)
    top_k: Number | None = Field(None, ge=-1, description="Extension; 0 and -1: no limit.")
    repetition_penalty: Real | None = Field(None, ge=0.5, le=5, description="Extension.")
    ignore_eos: StrictBool | None = Field(None, description="Extension, for measurements.")

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def chat(self) -> list[ChatMessage]:
        """The messages for :mod:`chatbot.prompt`."""
        return [{"role": ROLES[m.role], "content": m.text} for m in self.messages]

    def sampling(self, settings: Settings) -> dict[str, Any]:
        """Arguments of the engine's SamplingParams."""

        def given(value: Any, default: Any) -> Any:
            return default if value is None else value

        longest = given(self.max_completion_tokens, self.max_tokens)
        return {
            "max_tokens": given(longest, settings.reply_max_tokens),
            "temperature": given(self.temperature, settings.temperature),
            "top_p": given(self.top_p, settings.top_p),
            "top_k": max(0, given(self.top_k, 0)),
            "repetition_penalty": given(self.repetition_penalty, settings.repetition_penalty),
            "stop": given(self.stop, []),
            "seed": self.seed,
            "ignore_eos": bool(self.ignore_eos),
        }


def read_request(body: Any, settings: Settings) -> ChatRequest:
    """A checked request.

    Raises:
        Refused: names the parameter.
        PromptTooLong
    """
    if not isinstance(body, dict):
        raise Refused("the body must be a JSON object")
    try:
        request = ChatRequest.model_validate(_known(body))
    except ValidationError as error:
        # of a value that may have several forms, the problem of the form that fits best
        _refuse(max(error.errors(), key=lambda problem: len(problem["loc"])))
    if request.stream_options is not None and not request.stream:
        raise Refused("stream_options is only allowed with stream: true", "stream_options")
    if (
        request.max_tokens is not None
        and request.max_completion_tokens is not None
        and request.max_tokens != request.max_completion_tokens
    ):
        raise Refused("max_tokens and max_completion_tokens are one thing: send one", "max_tokens")
    _check_length(request, settings)
    return request


def _known(body: dict[str, Any]) -> dict[str, Any]:
    """The body without what changes nothing. Raises Refused: something that is not obeyed."""
    kept = {}
    for name, value in body.items():
        if name in UNSUPPORTED:
            if value is not None and not _is_neutral(value, UNSUPPORTED[name]):
                _refuse_unsupported(name)
        elif name in ChatRequest.model_fields:
            kept[name] = value
        elif name not in IGNORED:
            raise Refused(f"unknown parameter: {name[:64]!r}", name[:64], "unknown_parameter")
    if isinstance(kept.get("messages"), list):
        kept["messages"] = [_known_message(m) for m in kept["messages"]]
    return kept


def _is_neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    return any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral
    )


def _refuse_unsupported(name: str) -> NoReturn:
    if name == "n":
        raise Refused("n: one choice a request is written; ask as often as you need", "n")
    raise Refused(
        f"{name} is not supported by this server: leave it out", name, "unsupported_parameter"
    )


def _known_message(message: Any) -> Any:
    """Clients send answers back as they got them, with fields that hold nothing."""
    if not isinstance(message, dict):
        return message
    return {
        k: v for k, v in message.items() if not (k in MESSAGE_IGNORED and (v is None or v == []))
    }


def _refuse(problem: ErrorDetails) -> NoReturn:
    place = [part for part in problem["loc"] if part not in ("str", "list[_Part]")]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    param = param.removeprefix(".")
    kind = problem["type"]
    if kind == "missing":
        raise Refused(f"missing required parameter: {param!r}", param, "missing_required_parameter")
    if kind == "extra_forbidden":
        raise Refused(f"{param} is not supported by this server", param, "unsupported_parameter")
    raise Refused(f"{param}: {problem['msg'].removeprefix('Value error, ')}", param)


def _check_length(request: ChatRequest, settings: Settings) -> None:
    """Refuse what certainly does not fit before anybody encodes it."""
    most = CHARS_PER_TOKEN * settings.max_context_tokens
    count = sum(len(message.text) for message in request.messages)
    if count > most:
        raise PromptTooLong(
            f"the messages have {count} characters; {most} at most are looked at, since prompt and "
            f"reply together may have {settings.max_context_tokens} tokens"
        )


def inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema with its definitions put where they are named: in a larger document, such as
    OpenAPI's, ``#/$defs`` would point to the document's."""
    definitions = schema.get("$defs", {})

    def put(node: Any) -> Any:
        if isinstance(node, list):
            return [put(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return put(definitions[node["$ref"].removeprefix("#/$defs/")])
        return {key: put(value) for key, value in node.items() if key != "$defs"}

    found: dict[str, Any] = put(schema)
    return found
