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
            LogReset: another epoch, or the log is shorter than the cursor.
        """
        if not catchup.recovered or catchup.head.epoch != self.epoch:
            raise LogReset("the conversation was loaded anew: reconnect and reload it")
        frames = seen_events(catchup, self._view)
        self.offset = max(self.offset, catchup.head.offset)
        if catchup.live is not None:
            frames += self._advance_live(catchup.live)
        return frames

    def _advance_live(self, live: LiveReply) -> list[Frame]:
        frames = []
        if live.reply_id != self._reply_id:
            self._reply_id, self._chars = live.reply_id, 0
            frames.append(protocol.reply_started(live.reply_id, live.version))
        if len(live.text) > self._chars:
            text = live.text[self._chars :]
            frames.append(protocol.reply_delta(live.reply_id, self._chars, text))
            self._chars = len(live.text)
        return frames
