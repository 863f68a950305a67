"""Logins that survive a page reload.

Streamlit forgets a session when its socket closes. The API token of a login is therefore kept
here, in the console's memory, under a random key that the browser holds in an HttpOnly cookie.
The token itself never reaches the browser. `docs/decisions/0008-console.md` weighs the choices.
"""

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st

COOKIE = "frontdesk_console"
TICKET_HEADER = "x-frontdesk-ticket"
TICKET_SECONDS = 60.0
MOST_LOGINS = 1000  # kept at once; the oldest makes room


@dataclass(frozen=True, slots=True)
class KeptLogin:
    """A login as the console keeps it. ``expires_at`` is Unix time in milliseconds."""

    token: str
    username: str
    role: str
    expires_at: int


def _digest(secret: str) -> str:
    """Keys are kept as hashes, so that a look into the memory yields no usable cookie."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Vault:
    """Logins by cookie key, and tickets that let a browser fetch its cookie once.

    Thread-safe: script threads and the HTTP routes use it together.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._logins: dict[str, KeptLogin] = {}
        self._tickets: dict[str, tuple[str, float]] = {}  # digest -> (cookie key, until)

    def keep(self, login: KeptLogin) -> tuple[str, str]:
        """Keep ``login``; returns its cookie key and a ticket for it."""
        key, ticket = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        with self._lock:
            self._forget_expired()
            while len(self._logins) >= MOST_LOGINS:
                del self._logins[next(iter(self._logins))]
            self._logins[_digest(key)] = login
            self._tickets[_digest(ticket)] = (key, self._clock() + TICKET_SECONDS)
        return key, ticket

    def find(self, key: str) -> KeptLogin | None:
        """The login under this cookie key, if it has not expired."""
        with self._lock:
            self._forget_expired()
            return self._logins.get(_digest(key))

    def redeem(self, ticket: str) -> tuple[str, int] | None:
        """The cookie key of a ticket and its expiry (Unix ms); works once."""
        with self._lock:
            self._forget_expired()
            key, _ = self._tickets.pop(_digest(ticket), ("", 0.0))
            login = self._logins.get(_digest(key))
        return (key, login.expires_at) if login else None

    def ticket_open(self, ticket: str) -> bool:
        """Whether the browser has yet to fetch its cookie."""
        with self._lock:
            self._forget_expired()
            return _digest(ticket) in self._tickets

    def forget(self, key: str) -> None:
        with self._lock:
            self._logins.pop(_digest(key), None)

    def _forget_expired(self) -> None:
        now = self._clock()
        self._logins = {k: v for k, v in self._logins.items() if v.expires_at > now * 1000}
        self._tickets = {k: v for k, v in self._tickets.items() if v[1] > now}


@st.cache_resource(show_spinner=False)
def open_vault() -> Vault:
    """The one vault of this console process."""
    return Vault()
