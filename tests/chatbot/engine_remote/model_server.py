"""A small real HTTP server that behaves like vLLM's, and as badly as a test wants.

It says a fixed text, token by token, from the place that the prompt's end shows: so a call that
continues an earlier one is told from one that begins again. ``faults`` are what happens to the
next calls, one each.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

MAX_LEN = 512
PLAIN = {"content-type": "application/json"}


@dataclass
class Fault:
    """How a call for a completion goes wrong. ``after``: events that still come out well."""

    kind: str  # status, cut, end, stall, garbage, error, abort, endless
    after: int = 0
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None


@dataclass
class ModelServer:
    """Say ``text``, and then the token ``end``."""

    text: str
    end: int
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    ids: bool = True  # tell token ids, as vLLM does; else text alone
    models: dict[str, str] = field(default_factory=lambda: {"talker": "/models/talker"})
    owner: str = "vllm"
    loads: bool = True  # adapters at run time
    refused_adapter: str = ""  # message with which an adapter is refused
    faults: list[Fault] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    adapter_calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    closed: int = 0  # completions that the client left
    healthy: bool = True
    key: str = ""
    url: str = ""

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator["ModelServer"]:
        """Listen on loopback."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        tasks = self._tasks = set[asyncio.Task[None]]()
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while head := await _head(reader):
                method, path, length, key = head
                raw = await reader.readexactly(length)
                body = json.loads(raw) if raw else {}
                await self._answer(writer, reader, method, path, body, key)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(
        self,
        writer: asyncio.StreamWriter,
        reader: asyncio.StreamReader,
        method: str,
        path: str,
        body: dict[str, Any],
        key: str,
    ) -> None:
        if self.key and key != f"Bearer {self.key}":
            await _send(writer, 401, {"error": {"message": "no key"}})
        elif path == "/health":
            await _send(writer, 200 if self.healthy else 503, "")
        elif path == "/v1/models":
            await _send(writer, 200, {"data": self._cards()})
        elif path == "/tokenize":
            ids = self.encode(body["prompt"])
            await _send(writer, 200, {"tokens": ids, "count": len(ids)})
        elif path.endswith("_lora_adapter") and self.loads:
            self.adapter_calls.append((path, body))
            await self._adapter(writer, path, body)
        elif path == "/v1/completions":
            self.calls.append(body)
            await self._complete(writer, reader, body)
        else:
            await _send(writer, 404, {"detail": "Not Found"})

    def _cards(self) -> list[dict[str, Any]]:
        first = next(iter(self.models))
        return [
            {
                "id": name,
                "owned_by": self.owner,
                "root": root,
                "parent": None if name == first else first,
                "max_model_len": MAX_LEN if name == first else None,
            }
            for name, root in self.models.items()
        ]

    async def _adapter(self, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]) -> None:
        name = body["lora_name"]
        if self.refused_adapter:
            await _send(writer, 400, {"error": {"message": self.refused_adapter}})
        elif path == "/v1/load_lora_adapter":
            self.models[name] = body["lora_path"]
            await _send(writer, 200, "Success")
        elif self.models.pop(name, None) is None:
            await _send(writer, 404, {"error": {"message": f"no adapter {name}"}})
        else:
            await _send(writer, 200, "Success")

    async def _complete(
        self, writer: asyncio.StreamWriter, reader: asyncio.StreamReader, body: dict[str, Any]
    ) -> None:
        fault = self.faults.pop(0) if self.faults else Fault("none")
        if body["model"] not in self.models:
            error = {"message": f"The model `{body['model']}` does not exist."}
            await _send(writer, 404, {"error": error})
            return
        if fault.kind == "status":
            await _send(writer, fault.status, fault.body or {"error": "x"}, fault.headers)
            return
        await _begin(writer)
        events = self._events(body)
        for number, event in enumerate(events):
            if fault.kind != "none" and number == fault.after:
                await self._go_wrong(writer, reader, fault)
                return
            await _event(writer, event)
            await asyncio.sleep(0)
        await _chunk(writer, b"data: [DONE]\n\n")
        await _finish(writer)

    def _events(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """One for each token, and the usage."""
        prompt = body["prompt"]
        ids = prompt if isinstance(prompt, list) else self.encode(prompt)
        whole = self.encode(self.text)
        said = max(n for n in range(len(whole) + 1) if n == 0 or ids[-n:] == whole[:n])
        left = [*whole[said:], self.end]
        kept, reason = left[: body["max_tokens"]], "length"
        if len(left) <= body["max_tokens"]:
            reason = "stop"
        events: list[dict[str, Any]] = []
        shown = ""
        for number, token in enumerate(kept):
            choice: dict[str, Any] = {"index": 0, "finish_reason": None}
            text = self.decode([other for other in kept[: number + 1] if other != self.end])
            choice["text"] = "" if text.endswith("\ufffd") else text[len(shown) :]
            shown += choice["text"]
            if self.ids:
                choice["token_ids"] = [token]
                choice["logprobs"] = {"token_logprobs": [-0.6931471805599453]}
            if number == len(kept) - 1:
                choice["finish_reason"] = reason
            events.append({"choices": [choice]})
        details = {"cached_tokens": 2}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(kept)}
        events.append({"choices": [], "usage": usage | {"prompt_tokens_details": details}})
        return events

    async def _go_wrong(
        self, writer: asyncio.StreamWriter, reader: asyncio.StreamReader, fault: Fault
    ) -> None:
        if fault.kind == "stall":
            await reader.read()  # until the client leaves
            self.closed += 1
        elif fault.kind == "garbage":
            await _chunk(writer, b"data: {nonsense\n\n")
            await _finish(writer)
        elif fault.kind == "error":
            await _event(writer, {"error": {"message": "out of memory", "code": 500}})
            await _finish(writer)
        elif fault.kind == "abort":
            await _event(writer, {"choices": [{"text": "", "finish_reason": "abort"}]})
            await _finish(writer)
        elif fault.kind == "end":  # a clean end of the stream, but not of the reply
            await _finish(writer)
        elif fault.kind == "endless":
            try:
                while True:
                    await _event(
                        writer, {"choices": [{"text": "x", "token_ids": self.encode("x")}]}
                    )
                    await asyncio.sleep(0)
            except ConnectionError:
                self.closed += 1
                raise
        raise ConnectionError  # and the connection is gone


async def _head(reader: asyncio.StreamReader) -> tuple[str, str, int, str] | None:
    line = await reader.readline()
    if not line:
        return None
    method, path, _ = line.decode().split()
    length, key = 0, ""
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode().partition(":")
        if name.lower() == "content-length":
            length = int(value)
        if name.lower() == "authorization":
            key = value.strip()
    return method, path, length, key


async def _send(
    writer: asyncio.StreamWriter, status: int, body: Any, headers: dict[str, str] | None = None
) -> None:
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    lines = {**PLAIN, "content-length": str(len(raw)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"HTTP/1.1 {status} x\r\n{head}\r\n".encode() + raw)
    await writer.drain()


async def _begin(writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    await writer.drain()


async def _event(writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
    await _chunk(writer, f"data: {json.dumps(event)}\n\n".encode())


async def _chunk(writer: asyncio.StreamWriter, raw: bytes) -> None:
    writer.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
    await writer.drain()


async def _finish(writer: asyncio.StreamWriter) -> None:
    writer.write(b"0\r\n\r\n")
    await writer.drain()
