"""The keys and values of the replies that are being written once more, each sequence's in one
piece.

A decode step reads all that its sequences have in the cache, and takes as long as the memory needs
for that. Gathering their blocks first would read and write it once more, in every step. Here a
sequence is gathered when it begins to decode, and each step adds its own rows.
"""

from dataclasses import dataclass

import torch

from chatbot.engine.torch.attention import PagedCache
from chatbot.engine.torch.scheduler import Work
from chatbot.engine.torch.sequence import Sequence

GRAIN = 64  # tokens; see :func:`room_for`
SLACK = 0.7  # the share of the room below which less is taken


class DenseCache:
    """One place for each sequence of a group, numbered from 0, all with room for as many tokens
    as the longest needs, so that one product serves several of them.

    It holds the sequences of one step and the next: whoever is not in a step loses its place. The
    memory, at most ``most`` tokens, is not touched before it is used.
    """

    def __init__(self, cache: PagedCache, most: int) -> None:
        self._cache = cache
        self._most = most
        layers, kv_heads, _, _ = cache.keys.shape
        self._place = (kv_heads, cache.head_dim)  # of one token
        shape = (layers, most * kv_heads * cache.head_dim)
        self._memories = [torch.empty(shape, dtype=cache.keys.dtype) for _ in range(2)]
        self._held: list[Sequence] = []  # by place
        self._room = 0

    @property
    def room(self) -> int:
        """Tokens of a place."""
        return self._room

    def hold(self, works: list[Work], places: int) -> list[int] | None:
        """Each work's place, where afterwards all is that the cache has before ``work.start``.
        ``places``: how many are read, those that nobody has among them. None: there is no memory
        for so much."""
        room = room_for(max(work.stop for work in works))
        if SLACK * self._room < room < self._room:
            room = self._room
        if places * room > self._most:
            return None
        self._leave({work.sequence for work in works})
        self._resize(room)
        for work in works:
            if work.sequence not in self._held:
                self._take(work)
        where = {sequence: place for place, sequence in enumerate(self._held)}
        return [where[work.sequence] for work in works]

    def slots(self, works: list[Work], places: list[int]) -> torch.Tensor:
        """Where keys and values of the works' rows go, as rows of :meth:`layer`:
        [rows * kv_heads]."""
        heads = torch.arange(self._place[0]) * self._room
        rows = [
            place * self._place[0] * self._room + token
            for work, place in zip(works, places, strict=True)
            for token in range(work.start, work.stop)
        ]
        return (torch.tensor(rows)[:, None] + heads).view(-1)

    def layer(self, index: int, places: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values: two of [places * kv_heads, room, head_dim], contiguous."""
        kv_heads, head_dim = self._place
        size = places * kv_heads * self._room * head_dim
        shape = (-1, self._room, head_dim)
        keys, values = (memory[index, :size].view(shape) for memory in self._memories)
        return keys, values

    def _views(self, places: int, room: int) -> list[torch.Tensor]:
        """Two of [layers, places, kv_heads, room, head_dim]."""
        kv_heads, head_dim = self._place
        size = places * kv_heads * room * head_dim
        shape = (places, kv_heads, room, head_dim)
        return [memory[:, :size].view(len(memory), *shape) for memory in self._memories]

    def _leave(self, staying: set[Sequence]) -> None:
        """The last sequence takes the place of one that goes."""
        views = self._views(len(self._held), self._room)
        for place in reversed(range(len(self._held))):
            if self._held[place] in staying:
                continue
            last = self._held.pop()
            if place < len(self._held):
                self._held[place] = last
                for view in views:
                    view[:, place] = view[:, len(self._held)]

    def _resize(self, room: int) -> None:
        if room == self._room:
            return
        common = min(room, self._room)
        pairs = zip(
            self._views(len(self._held), self._room),
            self._views(len(self._held), room),
            strict=True,
        )
        for old, new in pairs:
            for before, after in zip(old, new, strict=True):  # of a layer; they overlap
                kept = before[:, :, :common].clone()
                after[:, :, :common] = kept
                after[:, :, common:] = 0  # a NaN there would meet a masked weight of 0
        self._room = room

    def _take(self, work: Work) -> None:
        place = len(self._held)
        self._held.append(work.sequence)
        blocks = work.sequence.blocks[: -(-work.start // self._cache.block_size)]
        table = torch.tensor(blocks, dtype=torch.long)
        views = self._views(place + 1, self._room)
        for view, memory in zip(views, (self._cache.keys, self._cache.values), strict=True):
            layers, kv_heads, _, _ = memory.shape
            found = memory.index_select(2, table).view(layers, kv_heads, -1, self._cache.head_dim)
            view[:, place, :, : work.start] = found[:, :, : work.start]
            view[:, place, :, work.start :] = 0


@dataclass(frozen=True, slots=True)
class Dense:
    """The dense cache as a step's group of sequences uses it: see
    :class:`chatbot.engine.torch.attention.DecodeMemory`."""

    cache: DenseCache
    places: int
    slots: torch.Tensor  # [rows * kv_heads] where their keys and values go

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        for memory, fresh in zip(self.read(layer), (keys, values), strict=True):
            size = fresh.shape[-1]
            memory.view(-1, size).index_copy_(0, self.slots, fresh.reshape(-1, size))

    def read(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cache.layer(layer, self.places)


def room_for(tokens: int) -> int:
    """A multiple of GRAIN: oneDNN keeps about a megabyte for every shape that came up."""
    return -(-tokens // GRAIN) * GRAIN
