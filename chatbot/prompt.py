"""The one prompt builder (design idea 4): conversation -> chat messages -> token ids.

Training, evaluation and serving all call :func:`encode_prompt` and :func:`encode_dialogue`, so
what a model was tuned on is, token for token, what it is asked at serving time.

Each message is rendered and tokenized on its own and the pieces are concatenated. So the ids of
a conversation are a prefix of the ids of the same conversation one turn later, whatever the
tokenizer merges: the KV cache of a turn serves the next one.

A message is three runs of ids: what the model's chat format puts before the content, the content,
and what it puts after. Content is data: a control token spelled out in it ("<|im_end|>") is
encoded as plain characters, so nobody can end their turn and begin another's by typing it.

Formats: ChatML, written here, for models whose template is ChatML (SmolLM2, Qwen); the pieces of
the model's own jinja template for others that have one; a plain "User:" / "Assistant:" form with
the end-of-text token as end of turn for models without a template (GPT-2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, Protocol, TypedDict

from chatbot.errors import ModelError, RequestRefused

Role = Literal["system", "user", "assistant", "tool"]

CUT_MARK = "[…] "  # stands where the front of a message too long for the context was cut off
PLAIN_LABELS: dict[str, str] = {
    "system": "System",
    "user": "User",
    "assistant": "Assistant",
    "tool": "Lookup",
}


class ChatMessage(TypedDict):
    """One turn in the OpenAI chat shape. ``tool`` is a look-up's result, shown to the model.

    ``weight`` (0 or 1, default 1) is read by training only: 0 keeps an assistant message in the
    context but out of the loss.
    """

    role: Role
    content: str
    weight: NotRequired[int]


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that the product uses."""

    eos_token_id: int | None
    chat_template: Any

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...
    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = ...) -> str: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class AgentSpan:
    """Where an assistant message's content and end of turn stand: ``ids[start:end]``."""

    message: int  # index into the messages given
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class EncodedDialogue:
    """A dialogue as the model sees it in training.

    ``loss_mask[i]`` is 1 where ``ids[i]`` is to be learnt (content and end-of-turn token of
    assistant messages of weight 1). ``spans`` has every assistant message kept, of any weight.
    Messages from ``next_message`` on did not fit; it equals the number of messages when all did.
    """

    ids: list[int]  # [tokens]
    loss_mask: list[int]  # [tokens], 0 or 1
    spans: list[AgentSpan]
    next_message: int


@dataclass(slots=True)
class _Piece:
    before: list[int]
    content: list[int]
    after: list[int]

    def __len__(self) -> int:
        return len(self.before) + len(self.content) + len(self.after)

    @property
    def ids(self) -> list[int]:
        return self.before + self.content + self.after


def encode_prompt(
    messages: Sequence[ChatMessage],
    tokenizer: Tokenizer,
    max_tokens: int,
    reply_so_far: str = "",
) -> list[int]:
    """Ids that ask for the next assistant message, at most ``max_tokens`` of them.

    They end with the header of an assistant turn, followed by ``reply_so_far`` where a reply that
    was begun is to be continued. When they do not fit, the oldest turns are left out whole (a
    turn begins with a user message), but never a system message that stands first. Only where the
    last message alone is too long is it cut, at its front, and marked with ``CUT_MARK``.

    Raises:
        RequestRefused: the system message leaves no room for the last message.
        ModelError: the model's chat template cannot be used; says why.
    """
    started = _encode_content(reply_so_far, tokenizer, _control_ids(tokenizer))
    kept = list(messages)
    while True:
        pieces, reply_header = _layout(kept, tokenizer)
        room = max_tokens - len(reply_header) - len(started)
        if sum(map(len, pieces)) <= room:
            break
        first = 1 if kept and kept[0]["role"] == "system" else 0
        start = _first_that_fits(kept, pieces, first, room)
        if start <= first:
            if len(kept) == first:
                raise _no_room(sum(map(len, pieces)) - room)
            _cut_front(pieces[-1], sum(map(len, pieces)) - room, tokenizer)
            break
        kept = kept[:first] + kept[start:]
    return [id_ for piece in pieces for id_ in piece.ids] + reply_header + started


def system_tokens(messages: Sequence[ChatMessage], tokenizer: Tokenizer) -> int:
    """How many ids of :func:`encode_prompt` are the system message's: they come first, and are
    the same in every conversation that has it. 0 without one.

    Raises:
        ModelError: as in :func:`encode_prompt`.
    """
    if not messages or messages[0]["role"] != "system":
        return 0
    return len(_layout(messages[:2], tokenizer)[0][0])


def encode_dialogue(
    messages: Sequence[ChatMessage], tokenizer: Tokenizer, max_tokens: int
) -> EncodedDialogue:
    """Ids and loss mask of a whole dialogue, at most ``max_tokens`` of them.

    A dialogue that is too long ends after the last whole message that fits. Where not even the
    first assistant message fits, the messages before it are left out from the oldest on; if need
    be the message before it is cut at its front, then its own content at its end. The end-of-turn
    token of every assistant message kept is kept.

    Raises:
        RequestRefused: no room even for that; ModelError: as in :func:`encode_prompt`.
    """
    pieces, _ = _layout(messages, tokenizer)
    used = _count_that_fit(pieces, max_tokens)
    indices = list(range(used))
    agents = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if agents and used <= agents[0]:
        used = agents[0] + 1
        indices = _squeeze(messages, pieces, agents[0], max_tokens)
        pieces, _ = _layout([messages[i] for i in indices], tokenizer)
        _cut_around_reply(pieces, sum(map(len, pieces)) - max_tokens, tokenizer)
    control = _control_ids(tokenizer)
    dialogue = EncodedDialogue([], [], [], used)
    for index, piece in zip(indices, pieces, strict=False):
        _append(dialogue, index, messages[index], piece, control)
    return dialogue


def end_of_turn_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end a reply: the chat format's end-of-turn token first, then the end of text.

    Raises:
        ModelError: the model has no token that could end a turn.
    """
    probe: list[ChatMessage] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    after = _layout(probe, tokenizer)[0][-1].after
    end = after[_end_index(after, _control_ids(tokenizer))]
    others = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return (end, *(id_ for id_ in others if id_ != end))


# -- fitting into the context


def _first_that_fits(
    messages: Sequence[ChatMessage], pieces: list[_Piece], first: int, room: int
) -> int:
    """Index of the message from which on everything fits, moved on to the begin of a turn; the
    last message's index where nothing fits, ``first`` where there is nothing left to drop."""
    last = len(messages) - 1
    left = room - sum(map(len, pieces[:first]))
    start = last + 1
    while start > first and len(pieces[start - 1]) <= left:
        start -= 1
        left -= len(pieces[start])
    start = min(start, last)
    turns = [i for i in range(start, last + 1) if messages[i]["role"] == "user"]
    return turns[0] if turns else start


def _count_that_fit(pieces: list[_Piece], room: int) -> int:
    count = 0
    while count < len(pieces) and len(pieces[count]) <= room:
        room -= len(pieces[count])
        count += 1
    return count


def _squeeze(
    messages: Sequence[ChatMessage], pieces: list[_Piece], agent: int, max_tokens: int
) -> list[int]:
    """Message indices to keep so that the assistant message ``agent`` fits, if it can: the
    system message, the message before it and as many more as have room."""
    head = [0] if messages[0]["role"] == "system" and agent > 0 else []
    kept = [*range(len(head), agent)]
    size = sum(len(pieces[i]) for i in [*head, *kept, agent])
    while len(kept) > 1 and size > max_tokens:
        size -= len(pieces[kept.pop(0)])
    return [*head, *kept, agent]


def _cut_front(piece: _Piece, excess: int, tokenizer: Tokenizer) -> None:
    """Shorten the content by ``excess`` tokens at its front; at least one token of it stays."""
    mark = tokenizer.encode(CUT_MARK, add_special_tokens=False)
    keep = len(piece.content) - excess - len(mark)
    if keep < 1:
        raise _no_room(1 - keep)
    piece.content = mark + piece.content[-keep:]


def _cut_around_reply(pieces: list[_Piece], excess: int, tokenizer: Tokenizer) -> None:
    """Shorten the message before the last one at its front, then the last one at its end."""
    mark = tokenizer.encode(CUT_MARK, add_special_tokens=False)
    spare = len(pieces[-2].content) - len(mark) - 1 if len(pieces) > 1 else 0
    if excess > 0 and spare > 0:
        cut = min(excess, spare)
        _cut_front(pieces[-2], cut, tokenizer)
        excess -= cut
    if excess > 0:
        keep = len(pieces[-1].content) - excess
        if keep < 1:
            raise _no_room(1 - keep)
        pieces[-1].content = pieces[-1].content[:keep]


def _no_room(excess: int) -> RequestRefused:
    return RequestRefused(
        "the system message and the last message do not fit into the model's context: "
        f"{excess} tokens too many. Shorten the system message or allow a longer context."
    )


def _append(
    dialogue: EncodedDialogue,
    index: int,
    message: ChatMessage,
    piece: _Piece,
    control: frozenset[int],
) -> None:
    mask = [0] * len(piece)
    if message["role"] == "assistant":
        start = len(piece.before)
        end = start + len(piece.content) + _end_index(piece.after, control) + 1
        begin = len(dialogue.ids)
        dialogue.spans.append(AgentSpan(index, begin + start, begin + end))
        if message.get("weight", 1):
            mask[start:end] = [1] * (end - start)
    dialogue.ids.extend(piece.ids)
    dialogue.loss_mask.extend(mask)


# -- tokens of one message


def _control_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of tokens with a meaning of their own (begin and end of turn, end of text ...)."""
    added: dict[str, int] = getattr(tokenizer, "get_added_vocab", dict)()
    eos = tokenizer.eos_token_id
    return frozenset(added.values()) | (frozenset() if eos is None else {eos})


def _encode_content(text: str, tokenizer: Tokenizer, control: frozenset[int]) -> list[int]:
    """Ids of ``text`` without control tokens: those spelled out in it become characters."""
    ids = tokenizer.encode(text, add_special_tokens=False) if text else []
    if control.isdisjoint(ids):
        return ids
    plain: list[int] = []
    for id_ in ids:
        if id_ not in control:
            plain.append(id_)
            continue
        spelled = tokenizer.decode([id_], skip_special_tokens=False)
        for part in (spelled[:1], spelled[1:]):
            plain += tokenizer.encode(part, add_special_tokens=False) if part else []
    return plain


def _end_index(after: list[int], control: frozenset[int]) -> int:
    """Where in the ids after an assistant's content the end-of-turn token stands."""
    for index, id_ in enumerate(after):
        if id_ in control:
            return index
    raise ModelError(
        "the model's chat template writes no end-of-turn token after a reply, so a tuned model "
        "could never stop. Use a template that does, or remove it to use Frontdesk's own."
    )


# -- chat formats


def _layout(
    messages: Sequence[ChatMessage], tokenizer: Tokenizer
) -> tuple[list[_Piece], list[int]]:
    """The pieces of each message, and the header that opens the next assistant message."""
    frames = _frames([message["role"] for message in messages], tokenizer)
    control = _control_ids(tokenizer)
    pieces = [
        _Piece(list(before), _encode_content(message["content"], tokenizer, control), list(after))
        for message, (before, after) in zip(messages, frames[:-1], strict=True)
    ]
    return pieces, list(frames[-1][0])


_Frame = tuple[list[int], list[int]]  # ids before and after a message's content


def _frames(roles: Sequence[str], tokenizer: Tokenizer) -> list[_Frame]:
    """A frame for each role, and one more for the assistant message that comes next."""
    roles = [*roles, "assistant"]
    template = _template_text(tokenizer)
    if not template:
        return _plain_frames(roles, tokenizer)
    if "<|im_start|>" in template and "<|im_end|>" in template:
        texts = [(f"<|im_start|>{role}\n", "<|im_end|>\n") for role in roles]
    else:
        texts = _template_frames(roles, tokenizer)
    known: dict[str, list[int]] = {"": []}
    for text in {text for pair in texts for text in pair} - {""}:
        known[text] = tokenizer.encode(text, add_special_tokens=False)
    return [(known[before], known[after]) for before, after in texts]


def _template_text(tokenizer: Tokenizer) -> str:
    template = tokenizer.chat_template
    if isinstance(template, dict):  # some models name several templates
        template = template.get("default", "")
    return template or ""


def _plain_frames(roles: Sequence[str], tokenizer: Tokenizer) -> list[_Frame]:
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the base model's tokenizer has neither a chat template nor an end-of-text token, "
            "so a reply could never end. Give it one of them."
        )
    bos = getattr(tokenizer, "bos_token_id", None)
    opens = bos is not None and tokenizer.encode("a", add_special_tokens=True)[0] == bos
    before = {
        role: tokenizer.encode(f"{PLAIN_LABELS[role]}:\n", add_special_tokens=False)
        for role in set(roles)
    }
    after = [tokenizer.eos_token_id, *tokenizer.encode("\n", add_special_tokens=False)]
    frames = [(before[role], after) for role in roles]
    if bos is not None and opens:
        frames[0] = ([bos, *frames[0][0]], after)
    return frames


def _template_frames(roles: Sequence[str], tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Text before and after each content, from the model's own template.

    The conversation is rendered once per message with placeholders for the contents. Each
    rendering must extend the one before; what it adds is that message's frame. A message that
    shows only together with the next one (a system message folded into the first user message)
    is split there.
    """
    frames: list[tuple[str, str]] = []
    done, pending, problem = "", list[str](), ""
    for count in range(1, len(roles) + 1):
        mark = f"\ue000{count}\ue001"
        pending.append(mark)
        try:
            text = _render(roles[:count], tokenizer)
        except Exception as error:
            problem = str(error) or type(error).__name__
            continue
        if not text.startswith(done):
            raise ModelError(
                "the model's chat template changes earlier turns when a new one is added "
                f"(at message {count}), so turns cannot share a cache. Use a template that only "
                "appends, or remove it to use Frontdesk's own."
            )
        if mark not in text:
            continue
        frames += _split_at(text[len(done) :], pending)
        done, pending = text, []
    if pending:
        raise ModelError(
            f"the model's chat template refuses the roles {', '.join(sorted(set(roles)))}"
            f"{': ' + problem if problem else ''}. Use a template that takes them, or remove it "
            "to use Frontdesk's own."
        )
    return frames


def _split_at(text: str, marks: list[str]) -> list[tuple[str, str]]:
    frames: list[tuple[str, str]] = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            raise ModelError(
                "the model's chat template leaves a message out or reorders the messages. "
                "Use another template, or remove it to use Frontdesk's own."
            )
        frames.append((before, ""))
    frames[-1] = (frames[-1][0], text)
    return frames


def _render(roles: Sequence[str], tokenizer: Tokenizer) -> str:
    messages = [
        {"role": role, "content": f"\ue000{number}\ue001"}
        for number, role in enumerate(roles, start=1)
    ]
    apply: Any = tokenizer.apply_chat_template  # type: ignore[attr-defined]
    return str(apply(messages, tokenize=False, add_generation_prompt=False))
