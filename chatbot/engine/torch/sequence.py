"""One request as the scheduler sees it: its tokens, its blocks, and how far it has come."""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chatbot.engine.interface import FinishReason
from chatbot.engine.torch.blocks import block_digest, private_digest, root_digest

if TYPE_CHECKING:  # the scheduler carries these along and never looks inside
    from chatbot.engine.torch.adapters import LoraAdapter
    from chatbot.engine.torch.drafts import DraftState
    from chatbot.engine.torch.sampling import TokenChooser


def cache_namespace(adapter_uid: str | None, salt: str) -> str:
    """Text that is equal for two requests only if adapter and salt both are."""
    return json.dumps([adapter_uid, salt])


@dataclass(slots=True, eq=False)
class Sequence:
    """``tokens`` = prompt + generated; the KV cache holds the first ``computed`` of them, in
    ``blocks`` (block ``i`` holds tokens ``i * block_size`` and following).

    A sequence whose last token alone is not computed is *decoding*; with more left to compute it
    is *prefilling*, be it a new prompt or one that was preempted and is computed again.
    """

    request_id: str
    prompt: tuple[int, ...]  # [prompt length]
    max_tokens: int
    end_ids: frozenset[int] = frozenset()  # tokens after which the reply has ended
    namespace: str = cache_namespace(None, "")
    adapter: "LoraAdapter | None" = None
    chooser: "TokenChooser | None" = None
    shared_tokens: int | None = None  # tokens after them are private to the owner; None: none are
    owner: str = ""
    draft_scopes: tuple[str, ...] = ()
    draft_state: "DraftState | None" = None

    arrival: int = -1  # order of arrival; kept when preempted
    tokens: list[int] = field(init=False)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    cached_tokens: int = 0  # of the prompt, found in the cache
    preemptions: int = 0
    cancelled: bool = False  # set from any thread; obeyed at the next step
    finish_reason: FinishReason | None = None
    started_at: float = 0.0
    _digests: list[bytes] = field(default_factory=list)  # what the first blocks continue

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.prompt)

    @property
    def remaining(self) -> int:
        """Tokens whose keys and values are still to be computed before the next token."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        return self.remaining == 1 and self.generated > 0

    def parent_digest(self, index: int, block_size: int) -> bytes:
        """What block ``index`` continues: the digest of the block before it, made the owner's own
        where the private tokens begin. The tokens up to there must exist."""
        while len(self._digests) <= index:
            done = len(self._digests)
            parent = self.digest(done - 1, block_size) if done else root_digest(self.namespace)
            if self.shared_tokens is not None and done == self.shared_tokens // block_size:
                parent = private_digest(parent, self.owner)
            self._digests.append(parent)
        return self._digests[index]

    def digest(self, index: int, block_size: int) -> bytes:
        """Digest of the full block ``index``."""
        tokens = self.tokens[index * block_size : (index + 1) * block_size]
        return block_digest(self.parent_digest(index, block_size), tokens)
