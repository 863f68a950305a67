"""A reader's place in a conversation: what it has, and the frames that bring it up to date.

Pure: the socket reads the log (:meth:`ConversationLog.catch_up`), this turns what was read into
frames in their one order: events by offset, then the reply that is being written.
"""

from collections.abc import Callable
from typing import Any

from chatbot import protocol
from chatbot.conversation.events import LiveReply
from chatbot.conversation.interface import Catchup
from chatbot.errors import FrontdeskError

Frame = dict[str, Any]
_REPLY_ENDS = frozenset({"reply.completed", "reply.failed"})
View = Callable[[Frame], Frame | None]  # what this reader may see of an event; None: nothing


class LogReset(FrontdeskError):
    """The log is not the one that was followed: the reader must load it anew."""

    code = "log_reset"


def staff_view(frame: Frame) -> Frame | None:
    """Staff see every event as it is."""
    return frame


def visitor_view(frame: Frame) -> Frame | None:
    """Visitors never see staff-only events and fields."""
    return protocol.visitor_event(frame)


def seen_events(catchup: Catchup, view: View) -> list[Frame]:
    """The events that were read, as this reader may see them."""
    frames = (view(event.to_wire()) for event in catchup.events)
    return [frame for frame in frames if frame is not None]


def live_frame(live: LiveReply | None) -> Frame | None:
    """``live_reply`` of a welcome."""
    if live is None:
        return None
    return {"reply_id": live.reply_id, "version": live.version, "text": live.text}


class Follower:
    """The cursor of one reader: ``(epoch, offset)`` in the log, and ``(reply_id, chars)`` in the
    reply that is being written."""

    def __init__(self, catchup: Catchup, view: View) -> None:
        self._view = view
        self.epoch = catchup.head.epoch
        self.offset = catchup.head.offset
        self._reply_id: str | None = None
        self._chars = 0
        if catchup.live is not None:
            self._reply_id = catchup.live.reply_id
            self._chars = len(catchup.live.text)

    def advance(self, catchup: Catchup) -> list[Frame]:
        """Frames for everything that ``catchup`` holds beyond the cursor; moves the cursor.

        Raises:
            LogReset: the log lost what the reader has.
        """
        if not catchup.recovered:
            raise LogReset("the conversation was loaded anew: reconnect and reload it")
        # a new epoch that recovered holds all that the reader has: the store was restarted
        self.epoch = catchup.head.epoch
        frames: list[Frame] = []
        for frame in seen_events(catchup, self._view):
            if frame["type"] in _REPLY_ENDS:
                version = frame.get("version", "")
                frames += self._advance_reply(frame["reply_id"], version, frame["text"])
            frames.append(frame)
        self.offset = max(self.offset, catchup.head.offset)
        if catchup.live is not None:
            live = catchup.live
            if live.reply_id != self._reply_id:
                frames.append(self._start(live.reply_id, live.version))
            elif len(live.text) < self._chars:
                raise LogReset("a part of the reply was lost: reconnect and reload it")
            frames += self._advance_reply(live.reply_id, live.version, live.text)
        return frames

    def _start(self, reply_id: str, version: str) -> Frame:
        self._reply_id, self._chars = reply_id, 0
        return protocol.reply_started(reply_id, version)

    def _advance_reply(self, reply_id: str, version: str, text: str) -> list[Frame]:
        """What of a reply was not sent yet, also when it has ended meanwhile: so a reader that
        was there from the start can put every reply together from its pieces alone."""
        frames: list[Frame] = []
        sent = self._chars if reply_id == self._reply_id else 0
        if len(text) <= sent:
            return frames
        if reply_id != self._reply_id:
            frames.append(self._start(reply_id, version))
        frames.append(protocol.reply_delta(reply_id, sent, text[sent:]))
        self._chars = len(text)
        return frames
