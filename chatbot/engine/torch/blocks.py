"""The block manager: which fixed-size blocks of the KV cache hold what, and for whom.

A block holds the keys and values of ``block_size`` consecutive tokens. It is in one of three
states, and ``empty + cached + used == total`` always holds:

used    held by at least one sequence (reference count >= 1)
cached  held by nobody, but what it holds can still serve a prefix; least recently used goes first
empty   holds nothing that anyone could reuse

Only full blocks are ever shared, so a block that is written to has one owner. Of a block that holds
the next tokens and then others, or is full in part because its sequence ended there, a sequence
gets a copy and goes on in that (copy on write).

Prefixes are found by a chained digest, as in vLLM's automatic prefix caching
(https://docs.vllm.ai/en/latest/design/prefix_caching.html): a block's digest covers its tokens
and the digest of the block before it, and the first one covers the namespace, so equal text under
another adapter or salt is never shared. The first block with tokens that are private to a
conversation covers its owner, too, so from there on nothing is shared with others. On a hit the
tokens are compared again.
"""

from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence as Items
from dataclasses import dataclass
from hashlib import blake2b

BLOCK_SIZE = 16


def root_digest(namespace: str) -> bytes:
    """The digest that a chain of blocks starts from: [16 bytes]."""
    return blake2b(namespace.encode(), digest_size=16, person=b"namespace").digest()


def private_digest(parent: bytes, owner: str) -> bytes:
    """What stands for ``parent`` where a chain of blocks goes on with private tokens of ``owner``:
    [16 bytes]."""
    return blake2b(parent + owner.encode(), digest_size=16, person=b"owner").digest()


def block_digest(parent: bytes, tokens: Items[int]) -> bytes:
    """The digest of a full block with these tokens after the block with digest ``parent``."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=16).digest()


@dataclass(slots=True)
class _Block:
    references: int = 0
    digest: bytes | None = None  # None: not full, or not (or no longer) findable as a whole
    parent: bytes = b""
    tokens: tuple[int, ...] = ()  # none: holds nothing that could be found


class BlockManager:
    """Hands out block numbers ``0 .. total-1`` and finds shared prefixes. Knows no tensors."""

    def __init__(self, total: int, block_size: int = BLOCK_SIZE) -> None:
        self.total = total
        self.block_size = block_size
        self.evictions = 0
        self._blocks = [_Block() for _ in range(total)]
        self._empty = deque(range(total))
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._found: dict[bytes, int] = {}  # digest -> block
        self._after: dict[bytes, int] = {}  # digest of a parent -> the latest block after it

    @property
    def empty(self) -> int:
        return len(self._empty)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def used(self) -> int:
        return self.total - self.empty - self.cached

    @property
    def available(self) -> int:
        """Blocks that :meth:`allocate` could hand out now."""
        return self.empty + self.cached

    def references(self, block: int) -> int:
        return self._blocks[block].references

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold ``tokens`` tokens."""
        return -(-tokens // self.block_size)

    def find(self, parent: bytes, tokens: Items[int]) -> int | None:
        """The block that holds exactly these tokens after ``parent``, or None. Takes no hold."""
        block = self._found.get(block_digest(parent, tokens))
        if block is None:
            return None
        held = self._blocks[block]
        return block if held.parent == parent and held.tokens == tuple(tokens) else None

    def hold(self, block: int) -> None:
        """Add one reference to a block that :meth:`find` returned."""
        held = self._blocks[block]
        if held.references == 0:
            del self._cached[block]
        held.references += 1

    def allocate(self, count: int) -> list[int] | None:
        """``count`` blocks with one reference each, or None (and no change) if there are fewer.

        Empty blocks first, then the least recently used cached ones, which lose their prefix.
        """
        if count > self.available:
            return None
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        if self._empty:
            block = self._empty.popleft()
        else:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
            self.evictions += 1
        self._blocks[block].references = 1
        return block

    def seal(self, block: int, parent: bytes, tokens: Items[int]) -> bytes:
        """Make a full, computed block findable; returns its digest.

        If another block already holds the same prefix that one stays the findable one, and this
        one becomes empty when it is released.
        """
        digest = block_digest(parent, tokens)
        if digest not in self._found:
            self._keep(block, parent, tokens)
            self._blocks[block].digest = digest
            self._found[digest] = block
        return digest

    def seal_part(self, block: int, parent: bytes, tokens: Items[int]) -> None:
        """Let others copy the first slots, which hold ``tokens``, of a block that is not full. Its
        only reference is given up next, and it is never written to again."""
        self._keep(block, parent, tokens)

    def find_part(self, parent: bytes, tokens: Items[int]) -> tuple[int, int] | None:
        """A block, and how many of its first slots hold the first of ``tokens`` after ``parent``:
        1 or more; None if there is none. Of several blocks the latest is looked at. Takes no
        hold: what it holds now is to be copied before the next step writes anything."""
        block = self._after.get(parent)
        if block is None or self._blocks[block].parent != parent:
            return None
        count = 0
        for held, wanted in zip(self._blocks[block].tokens, tokens, strict=False):
            if held != wanted:
                break
            count += 1
        return (block, count) if count else None

    def _keep(self, block: int, parent: bytes, tokens: Items[int]) -> None:
        """It is the latest after its parent; what was that before and is not full goes."""
        before = self._after.get(parent)
        if before is not None and before in self._cached and self._blocks[before].digest is None:
            self._forget(before)
            del self._cached[before]
            self._empty.append(before)
        held = self._blocks[block]
        held.parent, held.tokens = parent, tuple(tokens)
        self._after[parent] = block

    def release(self, blocks: Items[int], keep: bool = True) -> None:
        """Give up one reference to each block of one sequence, in its order.

        The end of a sequence becomes least recently used before its start does, since a later
        prefix can only be used together with the earlier one. With ``keep=False`` blocks that
        nobody else holds are forgotten at once: what they hold is not to be trusted.
        """
        for block in reversed(blocks):
            held = self._blocks[block]
            held.references -= 1
            if held.references:
                continue
            if not keep:
                self._forget(block)
            if held.tokens:
                self._cached[block] = None
            else:
                self._empty.append(block)

    def _forget(self, block: int) -> None:
        held = self._blocks[block]
        if held.digest is not None:
            del self._found[held.digest]
        if self._after.get(held.parent) == block:
            del self._after[held.parent]
        held.digest, held.parent, held.tokens = None, b"", ()
