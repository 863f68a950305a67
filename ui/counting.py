"""The count of the training data, asked for beside the page: it takes half a minute, minutes under
load, and a page that waited for it would take no click meanwhile."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import streamlit as st

from ui import session
from ui.answers import Preview
from ui.api import ApiError

KEPT = "training_preview"
ERROR_SECONDS = 5.0  # then looking again is trying again
KEPT_SECONDS = 60.0  # then the server is asked again; it counts again only if something changed
AT_ONCE_SECONDS = 0.3  # an answer that the server has at hand needs no drawing of the wait
LONGEST_SECONDS = 1800.0


@dataclass
class Count:
    """Either ``preview`` or ``error`` once ``done`` is set. Times are of time.monotonic."""

    began: float
    done: threading.Event = field(default_factory=threading.Event)
    preview: Preview | None = None
    error: ApiError | None = None
    ended: float = 0.0

    @property
    def pending(self) -> bool:
        return not self.done.is_set()

    @property
    def old(self) -> bool:
        kept = ERROR_SECONDS if self.error else KEPT_SECONDS
        return not self.pending and time.monotonic() - self.ended > kept


def current(begin: bool = True) -> Count | None:
    """The browser session's count, begun anew if there is none or an old one. It survives leaving
    the page. With ``begin`` False: the one that there is."""
    kept: Count | None = st.session_state.get(KEPT)
    if begin and (kept is None or kept.old):
        kept = again()
    return kept


def again() -> Count:
    """Begin a count, unless this session waits for one."""
    kept: Count | None = st.session_state.get(KEPT)
    if kept is not None and kept.pending:
        return kept
    count = st.session_state[KEPT] = Count(time.monotonic())
    ask = session.api().training_preview  # the thread has no session of its own
    threading.Thread(target=_fetch, args=(count, ask), name="training-count", daemon=True).start()
    count.done.wait(AT_ONCE_SECONDS)
    return count


def forget() -> None:
    """The next look counts again: what is known may hold no more."""
    st.session_state.pop(KEPT, None)


def _fetch(count: Count, ask: Callable[[], Preview]) -> None:
    try:
        count.preview = _patiently(count, ask)
    except ApiError as error:
        count.error = error
    except Exception as error:  # else the page would wait for ever
        count.error = ApiError("internal", f"the count ended with {type(error).__name__}")
        raise
    finally:
        count.ended = time.monotonic()
        count.done.set()


def _patiently(count: Count, ask: Callable[[], Preview]) -> Preview:
    """One call may time out; the next one gets the same count of the server."""
    while True:
        try:
            return ask()
        except ApiError as error:
            if error.code != "timeout" or time.monotonic() - count.began > LONGEST_SECONDS:
                raise
