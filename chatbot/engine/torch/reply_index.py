"""What many conversations of one scope have in common, found by the last tokens of a reply.

Retrieval instead of a draft model (REST, arXiv 2311.08252): support replies repeat themselves, so
what followed the same words before is a good guess at what follows now. The index proposes; the
model decides, so nothing here can change a reply. It could change how fast a reply comes, and from
that one could try to tell whether a text is in it. So it proposes only tokens that ``SUPPORT``
different conversations had at that place: what one conversation alone said never leaves it.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

SUPPORT = 3  # conversations that must have had a token in the same place
MOST_SCOPES = 16
MOST_TOKENS = 16384  # of distinct replies in one scope; the least recently taught go first
MOST_PLACES = 64  # looked at for one pair of tokens, the latest ones
LONGEST_MATCH = 16
START = -1  # stands before the first token of a reply

Place = tuple["_Reply", int]  # a token of a reply


@dataclass(eq=False, slots=True)
class _Reply:
    tokens: tuple[int, ...]  # START and the reply
    count: int = 0  # how often it was taught
    conversations: set[str] = field(default_factory=set)  # SUPPORT of them at most
    public: bool = False


class ReplyIndex:
    """Taught replies by scope, in bounded memory. Not thread-safe."""

    def __init__(self, most_tokens: int = MOST_TOKENS, most_scopes: int = MOST_SCOPES) -> None:
        self._most_tokens = most_tokens
        self._most_scopes = most_scopes
        self._scopes: OrderedDict[str, _Scope] = OrderedDict()

    def teach(self, scope: str, tokens: Items[int], conversation: str | None) -> None:
        """See :meth:`chatbot.engine.interface.Engine.teach`."""
        if not tokens or len(tokens) > self._most_tokens:
            return
        if scope not in self._scopes:
            self._scopes[scope] = _Scope(self._most_tokens)
        self._scopes.move_to_end(scope)
        self._scopes[scope].teach(tokens, conversation)
        while len(self._scopes) > self._most_scopes:
            self._scopes.popitem(last=False)

    def draft(self, scopes: Iterable[str], reply: Items[int], count: int) -> tuple[list[int], int]:
        """(at most ``count`` tokens that may follow ``reply`` [reply length so far], length of the
        match that they were found by); of several scopes the one with the longest match."""
        recent = [START, *reply] if len(reply) < LONGEST_MATCH else reply[-LONGEST_MATCH:]
        found = [
            self._scopes[scope].draft(recent, count) for scope in scopes if scope in self._scopes
        ]
        return max(found, key=lambda item: (bool(item[0]), item[1]), default=([], 0))

    @property
    def tokens(self) -> int:
        """Tokens held, in all scopes."""
        return sum(scope.tokens for scope in self._scopes.values())


class _Scope:
    def __init__(self, most_tokens: int) -> None:
        self.tokens = 0
        self._most_tokens = most_tokens
        self._replies: OrderedDict[tuple[int, ...], _Reply] = OrderedDict()  # latest last
        self._places: dict[tuple[int, ...], OrderedDict[Place, None]] = {}  # latest last

    def teach(self, tokens: Items[int], conversation: str | None) -> None:
        key = (START, *tokens)
        reply = self._remove(key) if key in self._replies else _Reply(key)
        reply.count += 1
        reply.public = reply.public or conversation is None
        if conversation is not None and len(reply.conversations) < SUPPORT:
            reply.conversations.add(conversation)
        self._replies[key] = reply
        self.tokens += len(tokens)
        for pair, place in _pairs(reply):
            self._places.setdefault(pair, OrderedDict())[place] = None
        while self.tokens > self._most_tokens:
            self._remove(next(iter(self._replies)))

    def _remove(self, key: tuple[int, ...]) -> _Reply:
        reply = self._replies.pop(key)
        self.tokens -= len(key) - 1
        for pair, place in _pairs(reply):
            del self._places[pair][place]
            if not self._places[pair]:
                del self._places[pair]
        return reply

    def draft(self, recent: Items[int], count: int) -> tuple[list[int], int]:
        places = self._places.get(tuple(recent[-2:]), ())
        latest = [place for place, _ in zip(reversed(places), range(MOST_PLACES), strict=False)]
        lengths = {place: _match(place, recent) for place in latest}
        for length in sorted(set(lengths.values()), reverse=True):
            group = [place for place in latest if lengths[place] >= length]
            tokens = _agreed(group, count)
            if tokens:
                return tokens, length
        return [], 0


def _pairs(reply: _Reply) -> Iterator[tuple[tuple[int, ...], Place]]:
    """Each token of a reply as a place, by the two tokens before it (one before the first)."""
    for index in range(1, len(reply.tokens)):
        yield reply.tokens[max(0, index - 2) : index], (reply, index)


def _match(place: Place, recent: Items[int]) -> int:
    """How many tokens before the place are the recent ones."""
    reply, index = place
    length = 0
    limit = min(index, len(recent))
    while length < limit and reply.tokens[index - 1 - length] == recent[-1 - length]:
        length += 1
    return length


def _agreed(group: list[Place], count: int) -> list[int]:
    """The tokens at these places and after them, each by the majority of those that had the same
    tokens so far; ends where no majority is or too few conversations are left."""
    drafted: list[int] = []
    while len(drafted) < count:
        votes: dict[int, list[Place]] = {}
        for reply, index in group:
            if index + len(drafted) < len(reply.tokens):
                votes.setdefault(reply.tokens[index + len(drafted)], []).append((reply, index))
        best = max(votes.values(), key=_weight, default=[])
        if 2 * _weight(best) < _weight(group) or not _supported(best):
            break
        reply, index = best[0]
        drafted.append(reply.tokens[index + len(drafted)])
        group = best
    return drafted


def _weight(group: list[Place]) -> int:
    return sum(reply.count for reply, _ in group)


def _supported(group: list[Place]) -> bool:
    if any(reply.public for reply, _ in group):
        return True
    return len(set().union(*(reply.conversations for reply, _ in group))) >= SUPPORT
