"""Every key of the conversation log, in one place.

A conversation id maps to one of 64 lanes and the lane is the hash tag, so that all keys of a
conversation, and the job stream it uses, live in one slot of a Redis Cluster: one Lua script may
touch them all (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).
"""

import re
import zlib
from dataclasses import dataclass

from chatbot.conversation.events import ConversationId
from chatbot.errors import InputError

LANES = 64
GROUP = "workers"  # the consumer group of every job stream
# One consumer name for all workers: who may write is decided by the fence in the head, so names
# would only pile up in the store, one per restart.
CONSUMER = "worker"

LOG = "fd:{{{lane:02d}}}:log:{cid}"
HEAD = "fd:{{{lane:02d}}}:head:{cid}"
LIVE = "fd:{{{lane:02d}}}:live:{cid}"
IDS = "fd:{{{lane:02d}}}:ids:{cid}"
GONE = "fd:{{{lane:02d}}}:gone:{cid}"
TALK = "fd:{{{lane:02d}}}:talk:{cid}"  # what is being said in a call and is not final yet
DRAFTS = "fd:{{{lane:02d}}}:drafts:{cid}"  # for an agent, see ../assist/board.py
HEADS = "fd:{*}:head:*"  # pattern of every HEAD
JOBS = "fd:{{{lane:02d}}}:jobs"
OPEN = "fd:{{{lane:02d}}}:open"
DIRTY = "fd:{{{lane:02d}}}:dirty"
NOTIFY = "fd:{{{lane:02d}}}:notify"
SYNC = "fd:{{{lane:02d}}}:sync"  # written before waiting for the disk; its value means nothing
# set once the lane's part of the desk's list was restored from the record
RESTORED = "fd:{{{lane:02d}}}:restored"
# Field of the ids hash. Roles are kept apart: a visitor cannot use up an agent's id.
ID_FIELD = "{role}:{client_id}"

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def lane_of(conversation_id: ConversationId) -> int:
    """Lane of a conversation, 0..63.

    Raises:
        InputError: not an id; anything else could escape its lane or its key.
    """
    if not _ID.fullmatch(conversation_id):
        raise InputError("a conversation id has 1 to 64 characters of A-Z a-z 0-9 _ . : -")
    return zlib.crc32(conversation_id.encode()) % LANES


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys that a script of one conversation gets, in the order of ``lua/common.lua``."""

    head: str
    log: str
    live: str
    ids: str
    jobs: str
    open: str
    dirty: str
    notify: str
    gone: str
    talk: str
    drafts: str

    def as_list(self) -> list[str]:
        return [
            self.head,
            self.log,
            self.live,
            self.ids,
            self.jobs,
            self.open,
            self.dirty,
            self.notify,
            self.gone,
            self.talk,
            self.drafts,
        ]


def keys_of(conversation_id: ConversationId) -> Keys:
    """All keys of one conversation. Raises InputError as :func:`lane_of`."""
    lane = lane_of(conversation_id)
    names = (HEAD, LOG, LIVE, IDS, JOBS, OPEN, DIRTY, NOTIFY, GONE, TALK, DRAFTS)
    return Keys(*(name.format(lane=lane, cid=conversation_id) for name in names))


def sync_key(conversation_id: ConversationId) -> str:
    """SYNC of the conversation's lane."""
    return SYNC.format(lane=lane_of(conversation_id))


def lane_keys(template: str) -> list[str]:
    """One key per lane, for the templates without a conversation: JOBS, OPEN, DIRTY, NOTIFY ..."""
    return [template.format(lane=lane) for lane in range(LANES)]
