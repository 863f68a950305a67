"""HTTP to the server: JSON calls and the stream of a completion, each with a deadline."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx

from chatbot.engine.remote.pieces import Piece, ServerFailed, error_text, read_piece
from chatbot.engine.remote.sse import Events, Garbage
from chatbot.errors import BaseModelUnavailable, EngineBusy, RequestRefused
from chatbot.settings import Settings

CALL_SECONDS = 10.0  # for an answer that needs no model
LOAD_SECONDS = 120.0  # for loading an adapter
USAGE_SECONDS = 2.0  # the wait for the usage after the end of the text
BUSY_SECONDS = 2.0  # when a busy server does not say when to come back
MOST_BUSY_SECONDS = 60.0
MOST_ERROR_BYTES = 1 << 16


class Broken(Exception):
    """The answer broke off or never came: another try may succeed. ``away``: the server could
    not be reached at all."""

    def __init__(self, message: str, away: bool = False) -> None:
        super().__init__(message)
        self.away = away


class UnknownModel(Exception):
    """The server does not (any longer) have the model or adapter that was asked for."""


class Client:
    """One server. ``base`` is its address without ``/v1``."""

    def __init__(self, settings: Settings) -> None:
        self.base = settings.remote_url.rstrip("/").removesuffix("/v1")
        self.shown = str(httpx.URL(self.base).copy_with(userinfo=b""))  # for logs and errors
        self._first = settings.remote_first_token_seconds
        self._idle = settings.remote_idle_seconds
        key = settings.remote_key.get_secret_value()
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            # asyncio's deadlines bound the rest: httpx's would start anew with every byte
            timeout=httpx.Timeout(None, connect=settings.remote_connect_seconds),
            limits=httpx.Limits(max_connections=None),
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> Any:
        """The JSON of a path, None where there is no such path."""
        return await self._call("GET", path, None, CALL_SECONDS)

    async def post(self, path: str, body: dict[str, Any], seconds: float = CALL_SECONDS) -> Any:
        """As :meth:`get`, for a POST; an answer that is not JSON is given as text."""
        return await self._call("POST", path, body, seconds)

    async def alive(self, path: str) -> bool:
        """Whether the health check answers with success."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return (await self._http.get(self.base + path)).is_success
        except (httpx.HTTPError, TimeoutError):
            return False

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | None, seconds: float
    ) -> Any:
        try:
            async with asyncio.timeout(seconds):
                response = await self._http.request(method, self.base + path, json=body)
        except TimeoutError as error:
            raise Broken(f"no answer on {path} within {seconds:.0f} s", away=True) from error
        except httpx.HTTPError as error:
            raise Broken(f"{path}: {_reason(error)}", away=True) from error
        if response.status_code == 404 and not _about_a_model(response.content):
            return None
        if not response.is_success:
            raise _refusal(response, response.content)
        return _json(response.content)

    async def complete(self, body: dict[str, Any]) -> AsyncGenerator[Piece, None]:
        """Stream a completion. Close the iterator to cancel it: the connection is closed, at
        which servers stop the work.

        Raises:
            Broken: no (further) answer in time, a connection cut, garbage, an error of theirs.
            UnknownModel
            EngineBusy, RequestRefused, BaseModelUnavailable: what the server's refusal means.
        """
        deadline = time.monotonic() + self._first
        request = self._http.build_request("POST", self.base + "/v1/completions", json=body)
        try:
            async with _until(deadline):
                response = await self._http.send(request, stream=True)
            try:
                if response.status_code != 200:
                    async with _until(time.monotonic() + CALL_SECONDS):
                        said = await _some_of(response)
                    raise _refusal(response, said)
                async for piece in self._pieces(response, deadline):
                    yield piece
            finally:
                await response.aclose()
        except TimeoutError as error:
            raise Broken("the server is silent for too long") from error
        except httpx.ConnectError as error:
            raise Broken(_reason(error), away=True) from error
        except httpx.ConnectTimeout as error:
            raise Broken("it does not take the connection", away=True) from error
        except httpx.HTTPError as error:
            raise Broken(_reason(error)) from error
        except (Garbage, ServerFailed) as error:
            raise Broken(str(error)) from error

    async def _pieces(self, response: httpx.Response, deadline: float) -> AsyncIterator[Piece]:
        events, chunks = Events(), response.aiter_bytes()
        patience = self._idle
        while True:
            async with _until(deadline):
                data = await anext(chunks, None)
            for event in events.end() if data is None else events.feed(data):
                if event.strip() == "[DONE]":
                    return
                piece = read_piece(event)
                if piece.finish is not None:
                    patience = min(patience, USAGE_SECONDS)
                if piece.has_content:
                    deadline = time.monotonic() + patience
                yield piece
            if data is None:
                return


def _until(deadline: float) -> asyncio.Timeout:
    """``deadline``: as time.monotonic()."""
    return asyncio.timeout(max(0.0, deadline - time.monotonic()))


async def _some_of(response: httpx.Response) -> bytes:
    """The body of a refusal, as far as anybody would read it."""
    kept = b""
    async for data in response.aiter_bytes():
        kept += data
        if len(kept) > MOST_ERROR_BYTES:
            break
    return kept


def _json(body: bytes) -> Any:
    """The value, or the text where it is not JSON."""
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


def _about_a_model(body: bytes) -> bool:
    """A 404 about a model, not about the path: that one's body says just "Not Found"."""
    value = _json(body)
    return isinstance(value, dict) and bool(value.get("error"))


def _refusal(response: httpx.Response, body: bytes) -> Exception:
    """The exception for an answer that is not a success."""
    status, text = response.status_code, error_text(_json(body))
    said = f"{status}: {text}" if text else str(status)
    if status in (401, 403):
        return BaseModelUnavailable(
            f"the model server refuses our key ({status}): set FRONTDESK_REMOTE_KEY"
        )
    if status in (408, 429, 503):
        seconds = _retry_after(response)
        return EngineBusy(f"the model server is busy ({status})", retry_after=seconds)
    if status == 404:
        return UnknownModel(text)
    if 400 <= status < 500:
        return RequestRefused(f"the model server refuses the request ({said})")
    return Broken(f"the server answers {said}")


def _retry_after(response: httpx.Response) -> float:
    try:
        seconds = float(response.headers.get("retry-after", BUSY_SECONDS))
    except ValueError:  # a date; no model server sends one
        seconds = BUSY_SECONDS
    return min(max(seconds, 0.1), MOST_BUSY_SECONDS)


def _reason(error: httpx.HTTPError) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
