"""The block manager: which fixed-size blocks of the KV cache hold what, and for whom.

A block holds the keys and values of ``block_size`` consecutive tokens. It is in one of three
states, and ``empty + cached + used == total`` always holds:

used    held by at least one sequence (reference count >= 1)
cached  held by nobody, but what it holds can still serve a prefix; least recently used goes first
empty   holds nothing that anyone could reuse

Only full blocks are ever shared, so a block that is written to has one owner and nothing needs to
be copied on write. Prefixes are found by a chained digest, as in vLLM's automatic prefix caching
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
    digest: bytes | None = None  # None: not (or no longer) findable
    parent: bytes = b""
    tokens: tuple[int, ...] = ()


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
            held = self._blocks[block]
            held.digest, held.parent, held.tokens = digest, parent, tuple(tokens)
            self._found[digest] = block
        return digest

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
            if held.digest is None:
                self._empty.append(block)
            else:
                self._cached[block] = None

    def _forget(self, block: int) -> None:
        held = self._blocks[block]
        if held.digest is not None:
            del self._found[held.digest]
        held.digest, held.parent, held.tokens = None, b"", ()
