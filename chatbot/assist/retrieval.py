"""The closest past replies: what people answered when a conversation stood like this one.

A situation is what was said last, and how far the conversation has come: the visitor's words since
the last reply, that reply, look-ups in between, the system message, all earlier replies and
look-ups, and how many replies there were. Each is a field of its own in one inverted index over
TF-IDF weights (Salton and Buckley 1988, doi 10.1016/0306-4573(88)90021-0) times what the word tells
of replies (:func:`told`), so that "yes" of a visitor is not "yes" of an agent. The nearest
situations vote for their replies, as in k-nearest-neighbour classification: a reply that was given
in ten similar places is better than one given in one.

numpy only: an index of 36,000 replies is built in seconds and asked in milliseconds.
"""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chatbot.prompt import ChatMessage

_WORD = re.compile(r"\w+|[?!]")
# how much a field counts in the likeness of two situations (measured: docs/lab-book.md)
WEIGHTS = {
    "user": 1.0,
    "agent": 0.8,
    "tool": 1.2,
    "system": 1.0,
    "looked_up": 0.8,
    "before": 0.3,
    "place": 0.3,
}
PAIRED = frozenset({"user", "agent"})  # fields in which the order of words counts
MOST_PLACES = 12
REPEATED = frozenset({"agent", "system", "place"})  # fields whose texts come again and again
OFTEN = 5  # a reply that was given so often is one that a term may tell of
PRIOR = 30.0
LEAST_TOLD = 0.1  # of any term, so that where no reply is frequent rarity alone decides
NEIGHBOURS = 150  # situations that vote
SHARPNESS = 6.0  # votes are likeness to this power: near ones decide


@dataclass(frozen=True, slots=True)
class Situation:
    """Where a reply stands: the text of each field, "" where there is none."""

    user: str  # since the last reply
    agent: str  # the last reply
    tool: str  # since the last reply
    system: str
    looked_up: str = ""  # so far
    before: str = ""  # replies before the last
    place: str = "0"  # replies so far, MOST_PLACES at most


@dataclass(frozen=True, slots=True)
class Example:
    """A reply that was given, and where it comes from (shown to the agent)."""

    situation: Situation
    reply: str
    source: str
    after: str = ""  # what was answered next in the same dialogue


@dataclass(frozen=True, slots=True)
class Match:
    """A past reply. ``share`` is its part of the votes, 0..1; ``likeness`` the cosine of its
    nearest situation, 0..1; ``source`` that situation's."""

    reply: str
    share: float
    likeness: float
    source: str


def situation_of(messages: Sequence[ChatMessage]) -> Situation:
    """The situation after ``messages``: what the next reply answers."""
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
    replies = _said(messages, "assistant")
    places = (at for at in reversed(range(len(messages))) if messages[at]["role"] == "assistant")
    since = messages[next(places, -1) + 1 :]
    return Situation(
        user="\n".join(_said(since, "user")),
        agent="".join(replies[-1:]),
        tool="\n".join(_said(since, "tool")),
        system=system,
        looked_up="\n".join(_said(messages, "tool")),
        before="\n".join(replies[:-1]),
        place=str(min(len(replies), MOST_PLACES)),
    )


def _said(messages: Sequence[ChatMessage], role: str) -> list[str]:
    return [message["content"] for message in messages if message["role"] == role]


def examples_of(messages: Sequence[ChatMessage], source: str) -> Iterable[Example]:
    """Every reply of a dialogue that may be learned from (``weight`` not 0)."""
    after = ""
    found = []
    for at in range(len(messages) - 1, 0, -1):
        message = messages[at]
        if message["role"] == "assistant" and message.get("weight", 1):
            reply = message["content"].strip()
            if reply:
                found.append(Example(situation_of(messages[:at]), reply, source, after))
                after = reply
    return reversed(found)


# as a field of a situation that is looked for: whatever stood there
ANY = "\0"


class ReplyIndex:
    """Past replies by situation. Immutable; build another one to add to it."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self._examples = list(examples)
        self._vocabulary: dict[str, int] = {}
        docs, terms, fields = [], [], []
        for doc, example in enumerate(self._examples):
            for field, found in enumerate(_terms(example.situation)):
                ids = [self._vocabulary.setdefault(term, len(self._vocabulary)) for term in found]
                docs += [doc] * len(ids)
                terms += ids
                fields += [field] * len(ids)
        self._arrange(
            np.array(docs, np.int64), np.array(terms, np.int64), np.array(fields, np.int64)
        )

    def _arrange(
        self, docs: NDArray[np.int64], terms: NDArray[np.int64], fields: NDArray[np.int64]
    ) -> None:
        """Weights of all (document, term) pairs, sorted by term: the inverted index. Each field
        has unit length times its weight, so that a long one does not drown a short one."""
        total, size = len(self._examples), len(self._vocabulary)
        spread = np.bincount(terms, minlength=size)  # [terms] documents with the term
        rarity = np.log((1 + total) / (1 + spread)) + 1  # [terms]
        numbers = _common([example.reply for example in self._examples])[docs]
        self._worth = rarity * (LEAST_TOLD + told(terms, numbers, size))  # [terms]
        raw = self._worth[terms]
        place = docs * len(WEIGHTS) + fields
        lengths = np.sqrt(np.bincount(place, raw**2, total * len(WEIGHTS)))
        shares = np.array(list(WEIGHTS.values()))
        weights = raw / lengths[place] * shares[fields] / np.linalg.norm(shares)
        order = np.argsort(terms, kind="stable")
        self._docs = docs[order].astype(np.int32)
        self._weights = weights[order].astype(np.float32)
        self._begins = np.concatenate(([0], np.cumsum(spread)))  # term -> its slice

    def __len__(self) -> int:
        return len(self._examples)

    def nearest(self, situation: Situation) -> list[tuple[float, Example]]:
        """The nearest examples with their likeness (cosine, 0..1), the nearest first."""
        likeness = self._likeness(situation)
        count = min(NEIGHBOURS, len(likeness))
        if not count:
            return []
        rows = np.argpartition(-likeness, count - 1)[:count]
        rows = rows[np.argsort(-likeness[rows], kind="stable")]
        return [(float(likeness[row]), self._examples[row]) for row in rows if likeness[row] > 0]

    def _likeness(self, situation: Situation) -> NDArray[np.float32]:
        """Cosine of each example's situation with this one: [examples]."""
        likeness = np.zeros(len(self._examples), np.float32)
        norm = float(np.linalg.norm(list(WEIGHTS.values())))
        for found, share in zip(_terms(situation), WEIGHTS.values(), strict=True):
            known = [self._vocabulary[term] for term in found if term in self._vocabulary]
            length = float(np.linalg.norm(self._worth[known])) or 1.0
            for term in known:
                part = slice(self._begins[term], self._begins[term + 1])
                weight = self._worth[term] / length * share / norm
                likeness[self._docs[part]] += weight * self._weights[part]
        return likeness


def _common(replies: Sequence[str]) -> NDArray[np.int64]:
    """A number for each reply that was given often, -1 for the others: [replies]."""
    often = (reply for reply, count in Counter(replies).items() if count >= OFTEN)
    numbers = {reply: number for number, reply in enumerate(often)}
    return np.array([numbers.get(reply, -1) for reply in replies], np.int64)


def told(terms: NDArray[np.int64], replies: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """How much each of ``size`` terms tells of the reply, in nats, from pairs of a term and the
    reply that it stood before ([pairs], [pairs]; replies of -1 do not count): the divergence
    (Kullback and Leibler 1951, doi 10.1214/aoms/1177729694) of the replies given the term from all
    replies. ``PRIOR`` imagined replies, as all are, keep a term that was seen twice from saying
    much. "Refund" is frequent and tells a lot; a name is rare and tells nothing."""
    terms, replies = terms[replies >= 0], replies[replies >= 0]
    if not len(replies):
        return np.zeros(size)
    kinds = int(replies.max()) + 1
    general = np.bincount(replies, minlength=kinds) / len(replies)  # [kinds]
    seen = np.bincount(terms, minlength=size)  # [terms]
    pairs, counts = np.unique(terms * kinds + replies, return_counts=True)
    term, reply = np.divmod(pairs, kinds)
    given = (counts + PRIOR * general[reply]) / (seen[term] + PRIOR)
    unseen = PRIOR / (seen + PRIOR)  # what a reply that never followed keeps of its share
    rest = unseen[term] * general[reply] * np.log(unseen[term])
    found = np.bincount(term, given * np.log(given / general[reply]) - rest, size)
    # the sum over replies that never followed is what is left of unseen * log(unseen)
    all_of_it: NDArray[np.float64] = np.maximum(found + unseen * np.log(unseen), 0.0)
    return all_of_it


def vote(neighbours: Iterable[tuple[float, Example]]) -> list[Match]:
    """The replies of the ``NEIGHBOURS`` nearest situations, those with the most votes first."""
    nearest = sorted(neighbours, key=lambda item: item[0], reverse=True)[:NEIGHBOURS]
    votes: dict[str, float] = {}
    best: dict[str, tuple[float, str]] = {}  # reply -> (likeness, source) of the nearest
    for like, example in nearest:
        votes[example.reply] = votes.get(example.reply, 0.0) + like**SHARPNESS
        best.setdefault(example.reply, (like, example.source))
    whole = sum(votes.values())
    ranked = sorted(votes, key=lambda reply: votes[reply], reverse=True)
    return [Match(reply, votes[reply] / whole, *best[reply]) for reply in ranked]


def _terms(situation: Situation) -> list[frozenset[str]]:
    """The terms of each field, in the order of WEIGHTS."""
    return [
        (_known_terms if field in REPEATED else _field_terms)(field, getattr(situation, field))
        for field in WEIGHTS
    ]


def _field_terms(field: str, text: str) -> frozenset[str]:
    """Words and pairs of neighbours, as ``field:word``. An empty field is a term too: that
    nobody has answered yet says much."""
    if text == ANY:
        return frozenset()
    words = _WORD.findall(text.lower())
    terms = {f"{field}:{word}" for word in words or ["-"]}
    if field in PAIRED:
        terms.update(f"{field}:{a} {b}" for a, b in itertools.pairwise(words))
    return frozenset(terms)


_known_terms = functools.lru_cache(maxsize=20_000)(_field_terms)
