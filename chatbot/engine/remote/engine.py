"""The remote engine: a model server writes the replies, we hold its requests and their ends.

A request is a task. It waits for its turn, calls the server, and calls it again where a call
broke off: from the start as long as nothing was received, and else from the last token, with the
prompt grown by what the server has said, so that no text comes twice.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import structlog

from chatbot.base_models import base_directory, load_tokenizer
from chatbot.engine.interface import Chunk, EngineStats, GenerationRequest
from chatbot.engine.remote.client import Broken, Client, UnknownModel
from chatbot.engine.remote.connect import base_facts, connect
from chatbot.engine.remote.reply import RemoteReply, RemoteReplyStream
from chatbot.engine.remote.servers import Ask, Server
from chatbot.errors import (
    AdapterInvalid,
    EngineBusy,
    FrontdeskError,
    ModelError,
    Overloaded,
    RequestRefused,
    SettingsError,
)
from chatbot.prompt import Tokenizer
from chatbot.settings import Settings

log = structlog.get_logger(__name__)
T = TypeVar("T")

CHECK_SECONDS = 5.0  # between looks at a server that is well
CHECKS = 2  # failing one after the other, before a server counts as away: it may be just slow
AWAY_SECONDS = 1.0  # between looks at one that is away
BACKOFF_SECONDS = 0.25  # before the second call for a reply; doubles
AWAY_RETRY = 2.0  # what callers are told to wait while the server is away


@dataclass(eq=False, slots=True)
class Adapter:
    """An adapter of ours in the server. ``target``: see :class:`Ask`."""

    name: str
    directory: Path
    target: str | int
    users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class RemoteEngine:
    """See :class:`chatbot.engine.interface.Engine`.

    Raises:
        SettingsError: there is no address.
    """

    def __init__(self, settings: Settings) -> None:
        if not settings.remote_url.startswith(("http://", "https://")):
            raise SettingsError(
                "FRONTDESK_ENGINE=remote: set FRONTDESK_REMOTE_URL to the model server's address, "
                "e.g. http://127.0.0.1:8000"
            )
        self._settings = settings
        self._client = Client(settings)
        self._server: Server | None = None  # None: away, or not what it has to be
        self._problem: FrontdeskError | None = None
        self._adapters: dict[str, Adapter] = {}
        self._adapter_lock = asyncio.Lock()
        self._replies: dict[str, tuple[RemoteReply, asyncio.Task[None]]] = {}
        self._running = 0
        self._at_once = settings.max_running
        self._slots = asyncio.Semaphore(self._at_once)
        self._keeper: asyncio.Task[None] | None = None
        self._closing = False
        self._looked = asyncio.Event()  # set to look at the server now
        self._computed = self._cached = self._generated = 0
        self._step_seconds = 0.0
        self._reply_seconds = 1.0  # mean of the last replies
        self._tokenizer: Any = None
        self._context = self._max_context = settings.max_context_tokens
        self._end_ids: tuple[int, ...] = ()
        self._vocabulary = 0

    # -- life

    @property
    def tokenizer(self) -> Tokenizer:
        tokenizer: Tokenizer = self._tokenizer
        return tokenizer

    @property
    def max_context(self) -> int:
        return self._max_context

    async def start(self) -> None:
        """Load the tokenizer and look at the server. One that is away is waited for, with
        requests refused meanwhile; one that has another model is an error."""
        if self._keeper is not None:
            return
        await asyncio.to_thread(self._load)
        await self._connect()
        if self._problem is not None:
            raise self._problem
        self._keeper = asyncio.create_task(self._keep(), name="engine.remote")

    def _load(self) -> None:
        settings = self._settings
        source = base_directory(
            settings.base_model,
            settings.data_dir,
            lambda text: log.info("engine preparing", progress=text),
        )
        self._tokenizer = load_tokenizer(source)
        self._end_ids, self._vocabulary, context = base_facts(source, self._tokenizer)
        self._context = min(settings.max_context_tokens, context or settings.max_context_tokens)
        self._max_context = self._context

    async def close(self) -> None:
        self._closing = True
        if self._keeper is not None:
            await _end(self._keeper)
            self._keeper = None
        for _, task in list(self._replies.values()):
            await _end(task)
        await self._client.close()

    # -- the server's health

    async def _connect(self) -> None:
        """Find the server and what it has; never raises."""
        try:
            server = await connect(
                self._client, self._settings, self._tokenizer, self._end_ids, self._vocabulary
            )
            self._max_context = min(self._context, server.facts.context or self._context)
            at_once = min(server.at_once or self._settings.max_running, self._settings.max_running)
            if at_once != self._at_once:
                self._at_once, self._slots = at_once, asyncio.Semaphore(at_once)
            self._server, self._problem = server, None
        except (Broken, Overloaded, UnknownModel) as error:
            log.warning("engine away", url=self._client.shown, error=str(error))
        except FrontdeskError as error:
            if str(error) != str(self._problem):
                log.error("engine unusable", url=self._client.shown, error=str(error))
            self._problem = error

    async def _keep(self) -> None:
        """Look at the server now and then; connect anew when it has been away, since another
        model may have come back."""
        failed = 0
        while True:
            seconds = CHECK_SECONDS if self._server else AWAY_SECONDS
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._looked.wait(), seconds)
            self._looked.clear()
            if self._server is None:
                await self._connect()
            elif await self._client.alive(self._server.health):
                failed = 0
            elif (failed := failed + 1) >= CHECKS:
                failed = 0
                self._lost("its health check fails")

    def _lost(self, reason: str) -> None:
        if self._server is not None:
            log.warning("engine away", url=self._client.shown, error=reason)
            self._server = None

    # -- adapters

    async def load_adapter(self, name: str, directory: Path) -> None:
        self._require_server()
        async with self._adapter_lock:
            if name not in self._adapters:
                target = await self._asking(self._load_into_server(name, Path(directory)))
                self._adapters[name] = Adapter(name, Path(directory), target)

    async def _load_into_server(self, name: str, directory: Path) -> str | int:
        server = self._require_server()
        if not (directory / "adapter_config.json").is_file():
            raise AdapterInvalid(f"{directory} is not an adapter: it has no adapter_config.json")
        return await server.load_adapter(name, directory, self._seen_by_server(directory))

    def _seen_by_server(self, directory: Path) -> PurePosixPath:
        """The directory's path on the server's side."""
        directory = directory.absolute()
        ours, theirs = self._settings.data_dir.absolute(), self._settings.remote_data_dir
        if theirs and directory.is_relative_to(ours):
            return PurePosixPath(theirs) / directory.relative_to(ours)
        return PurePosixPath(directory)

    async def drop_adapter(self, name: str) -> None:
        adapter = self._adapters.pop(name, None)
        if adapter is None:
            return
        if adapter.users:
            adapter.idle.clear()
            await adapter.idle.wait()
        async with self._adapter_lock:
            if name in self._adapters or self._server is None:
                return  # loaded again meanwhile; or forgotten with the server
            try:
                await self._asking(self._server.unload_adapter(name))
            except FrontdeskError as error:  # another worker was first, or it stays there
                log.info("engine adapter not unloaded", adapter=name, error=str(error))

    async def _asking(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except UnknownModel as error:
            raise AdapterInvalid(f"the model server: {error}") from error
        except Broken as error:
            if error.away:
                self._lost(str(error))
            raise Overloaded(f"the model server: {error}", retry_after=AWAY_RETRY) from error

    # -- requests

    def submit(self, request: GenerationRequest) -> RemoteReplyStream:
        server = self._require_server()
        adapter = self._check(request, server)
        room = self.max_context - len(request.prompt_ids)
        reply = RemoteReply(
            request,
            min(request.sampling.max_tokens, room),
            self._tokenizer,
            self._end_ids,
            adapter.target if adapter else None,
        )
        if adapter is not None:
            adapter.users += 1
        task = asyncio.create_task(self._serve(reply, adapter), name=f"remote {request.request_id}")
        self._replies[request.request_id] = (reply, task)
        # a task that is cancelled before its first step never gets to its own end
        task.add_done_callback(lambda _: self._settle(reply, adapter, None))
        return RemoteReplyStream(reply, task)

    def _check(self, request: GenerationRequest, server: Server) -> Adapter | None:
        """Raise what speaks against the request; its adapter."""
        ids = request.prompt_ids
        if request.request_id in self._replies:
            raise RequestRefused(f"request {request.request_id!r} is being answered already")
        if not ids:
            raise RequestRefused("the prompt is empty")
        if len(ids) >= self.max_context:
            raise RequestRefused(
                f"the prompt has {len(ids)} tokens and leaves no room for a reply: prompt and "
                f"reply together may have {self.max_context}"
            )
        if min(ids) < 0 or max(ids) >= self._vocabulary:
            raise RequestRefused(f"the prompt holds token ids outside 0..{self._vocabulary - 1}")
        server.refuse(request)
        adapter = self._adapters.get(request.adapter) if request.adapter is not None else None
        if request.adapter is not None and adapter is None:
            raise RequestRefused(f"adapter {request.adapter!r} is not loaded")
        limit = self._settings.max_running + self._settings.max_waiting
        if len(self._replies) >= limit:
            wait = self._reply_seconds * len(self._replies) / self._settings.max_running
            raise EngineBusy(
                f"{limit} replies are being written or waiting already",
                retry_after=min(max(wait, 0.1), 60.0),
            )
        return adapter

    def _settle(
        self, reply: RemoteReply, adapter: Adapter | None, end: Chunk | FrontdeskError | None
    ) -> None:
        """Let go of the request and tell its reader the end; the first end counts."""
        if self._replies.get(reply.request.request_id, (None,))[0] is not reply:
            return
        del self._replies[reply.request.request_id]
        if adapter is not None:
            adapter.users -= 1
            if adapter.users == 0:
                adapter.idle.set()
        if end is None:
            end = reply.last("stopped")
        if isinstance(end, Chunk) and end.usage is not None and (reply.begun or reply.finish):
            self._cached += end.usage.cached_tokens
            self._computed += end.usage.prompt_tokens - end.usage.cached_tokens
            self._generated += end.usage.completion_tokens
        reply.queue.put_nowait(end)

    async def cancel(self, request_id: str) -> None:
        _, task = self._replies.get(request_id, (None, None))
        if task is not None:
            task.cancel()

    # -- one request's task

    async def _serve(self, reply: RemoteReply, adapter: Adapter | None) -> None:
        try:
            async with self._slots:
                self._running += 1
                began = time.monotonic()
                try:
                    await self._write(reply, adapter)
                finally:
                    self._running -= 1
                    spent = time.monotonic() - began
                    self._reply_seconds = 0.8 * self._reply_seconds + 0.2 * spent
            self._settle(reply, adapter, reply.last(reply.finish or "end"))
        except asyncio.CancelledError:
            self._settle(reply, adapter, reply.last("stopped"))
        except FrontdeskError as error:
            self._settle(reply, adapter, error)
        except Exception:
            log.exception("engine bug", request=reply.request.request_id)
            broken = ModelError("the model failed while it wrote this reply; the log says why")
            self._settle(reply, adapter, broken)

    async def _write(self, reply: RemoteReply, adapter: Adapter | None) -> None:
        """Call the server until the reply has its end."""
        calls = 0
        restored = False
        while reply.finish is None:
            calls += 1
            try:
                await self._call(reply)
                if reply.finish is None:
                    raise Broken("the answer broke off")
            except UnknownModel as error:
                if adapter is None or restored:
                    self._lost(f"it has lost its model ({error})")
                    raise ModelError(f"the model server has lost its model ({error})") from error
                restored = True  # it was restarted, or another worker dropped the adapter
                reply.target = await self._restore(adapter)
            except Broken as error:
                if reply.finish is not None:
                    return  # all that is missing is the usage
                if error.away:
                    self._lost(str(error))
                    self._looked.set()
                if not reply.can_go_on or calls > self._settings.remote_retries:
                    raise Overloaded(
                        f"the model server: {error}", retry_after=AWAY_RETRY
                    ) from error
                log.warning(
                    "engine call broke off",
                    request=reply.request.request_id,
                    tokens=reply.tokens,
                    error=str(error),
                )
                await asyncio.sleep(BACKOFF_SECONDS * 2 ** (calls - 1))

    async def _restore(self, adapter: Adapter) -> str | int:
        async with self._adapter_lock:
            log.warning("engine adapter loaded again", adapter=adapter.name)
            load = self._load_into_server(adapter.name, adapter.directory)
            adapter.target = await self._asking(load)
            return adapter.target

    async def _call(self, reply: RemoteReply) -> None:
        """One call, from the prompt and what the reply has so far."""
        server = self._require_server()
        written, request = reply.begin_call(), reply.request
        left = reply.max_tokens - len(written)
        if left < 1:
            reply.finish = "length"
            return
        ask = Ask(
            (*request.prompt_ids, *written),
            left,
            request.sampling,
            reply.target,
            request.cache_salt,
        )
        before = time.monotonic()
        async with aclosing(self._client.complete(server.body(ask))) as pieces:
            async for piece in pieces:
                chunk = reply.take(piece)
                if chunk is not None:
                    reply.queue.put_nowait(chunk)
                    now = time.monotonic()
                    before, self._step_seconds = now, now - before
                if reply.finish is not None and piece.finish is None and piece.has_content:
                    return  # ended here, by a stop string: nothing more is wanted of it

    def teach(self, scope: str, token_ids: Sequence[int], conversation: str | None) -> None:
        """Ignored: the server drafts by itself, or not at all."""

    # -- numbers

    def stats(self) -> EngineStats:
        if self._keeper is None or self._closing:
            raise Overloaded("the engine is not running (not started yet, or closing)")
        return EngineStats(
            waiting=len(self._replies) - self._running,
            running=self._running,
            blocks_total=0,
            blocks_used=0,
            blocks_cached=0,
            prefill_tokens_computed=self._computed,
            prefill_tokens_cached=self._cached,
            generated_tokens=self._generated,
            preemptions=0,
            evictions=0,
            last_step_seconds=self._step_seconds,
            adapters=tuple(self._adapters),
            healthy=self._server is not None,
        )

    def _require_server(self) -> Server:
        if self._keeper is None or self._closing:
            raise Overloaded("the engine is not running (not started yet, or closing)")
        if self._server is None:
            if self._problem is not None:
                raise self._problem
            raise EngineBusy("the model server is away", retry_after=AWAY_RETRY)
        return self._server


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait({task})
