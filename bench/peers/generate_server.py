"""`transformers` generate as an OpenAI-compatible server, as small as it can honestly be.

    python -m bench.peers.generate_server MODEL_DIRECTORY PORT MOST

Whatever waits when a batch has ended is the next batch, up to MOST requests, padded on the left;
who comes meanwhile waits. Each batch computes its whole prompts: nothing is kept between them.
Tokens are streamed as generate gives them out. Greedy only.
"""

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(eq=False, slots=True)
class Asked:
    """One request; ``tokens`` gets what is written, and None at the end."""

    ids: list[int]
    limit: int
    ignore_end: bool
    tokens: "asyncio.Queue[int | None]" = field(default_factory=asyncio.Queue)
    written: int = 0
    ended: bool = False


class Streamer:
    """Takes generate's tokens, [batch] at a time, to those who wait for them."""

    def __init__(self, batch: list[Asked], end_id: int, loop: asyncio.AbstractEventLoop) -> None:
        self._batch = batch
        self._end_id = end_id
        self._loop = loop
        self._prompts_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompts_seen:  # generate shows the prompts first
            self._prompts_seen = True
            return
        self._loop.call_soon_threadsafe(self._hand_on, value.tolist())

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._hand_on, [self._end_id] * len(self._batch), True)

    def _hand_on(self, tokens: list[int], last: bool = False) -> None:
        for asked, token in zip(self._batch, tokens, strict=True):
            if asked.ended:
                continue
            if not last:
                asked.written += 1
                asked.tokens.put_nowait(token)
            done = asked.written >= asked.limit
            asked.ended = last or done or (token == self._end_id and not asked.ignore_end)
            if asked.ended:
                asked.tokens.put_nowait(None)


class Loop:
    """The model, and the thread that serves one batch after the other."""

    def __init__(self, directory: str, most: int) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
        self._end_id = int(self.tokenizer.eos_token_id)
        self._most = most
        self._waiting: list[Asked] = []
        self._news = threading.Condition()

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, daemon=True).start()

    def add(self, asked: Asked) -> None:
        with self._news:
            self._waiting.append(asked)
            self._news.notify()

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting)
                batch = self._waiting[: self._most]
                del self._waiting[: self._most]
            with torch.inference_mode():
                self._write(batch)

    def _write(self, batch: list[Asked]) -> None:
        longest = max(len(asked.ids) for asked in batch)
        ids = torch.full((len(batch), longest), self._end_id)
        mask = torch.zeros_like(ids)
        for row, asked in enumerate(batch):
            ids[row, longest - len(asked.ids) :] = torch.tensor(asked.ids)
            mask[row, longest - len(asked.ids) :] = 1
        ends = None if any(asked.ignore_end for asked in batch) else self._end_id
        self._model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max(asked.limit for asked in batch),
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=self._end_id,
            streamer=Streamer(batch, self._end_id, self._loop),
        )


def make_app(loop: Loop) -> FastAPI:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Response:
        body = await request.json()
        text = loop.tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True
        )
        ids = loop.tokenizer.encode(text, add_special_tokens=False)
        asked = Asked(ids, body["max_tokens"], bool(body.get("ignore_eos")))
        loop.add(asked)
        events = _events(loop, asked)
        if body.get("stream"):
            return StreamingResponse(events, media_type="text/event-stream")
        async for _ in events:
            pass
        return JSONResponse({"choices": []})

    return app


async def _events(loop: Loop, asked: Asked) -> AsyncIterator[str]:
    written: list[int] = []
    shown = 0
    while (token := await asked.tokens.get()) is not None:
        written.append(token)
        text = loop.tokenizer.decode(written, skip_special_tokens=True)
        if not text.endswith("\ufffd") and len(text) > shown:
            yield _event({"choices": [{"index": 0, "delta": {"content": text[shown:]}}]})
            shown = len(text)
    usage = {"prompt_tokens": len(asked.ids), "completion_tokens": len(written)}
    yield _event({"choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def main(directory: str, port: int, most: int) -> None:
    loop = Loop(directory, most)
    loop.start()
    config = uvicorn.Config(make_app(loop), port=port, log_level="warning")
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
