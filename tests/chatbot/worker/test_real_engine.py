"""The worker with the torch engine on a tiny random model: greedy text is what it is, however
often its writer dies, and the next turn prefills only what is new."""

from typing import Any

import pytest

from chatbot.conversation.transcript import conversation_messages
from chatbot.engine.interface import GenerationRequest, SamplingParams
from chatbot.engine.torch.blocks import BLOCK_SIZE
from chatbot.prompt import encode_prompt
from tests.chatbot.conversation.steps import ask, begin, events_of, take
from tests.chatbot.engine.helpers import collect, running, tiny_model, until
from tests.chatbot.worker.conftest import Place
from tests.chatbot.worker.test_worker import BASE, ended

TOKENS = 24


@pytest.fixture
def small(place: Place) -> Place:
    return place.with_settings(reply_max_tokens=TOKENS, system_prompt="Be short. " * 5)


async def _direct(engine: Any, place: Place, question: str) -> str:
    messages = conversation_messages([], place.services.settings.system_prompt)
    messages.append({"role": "user", "content": question})
    ids = encode_prompt(messages, engine.tokenizer, 400)
    asked = GenerationRequest(
        "direct", tuple(ids), SamplingParams(max_tokens=TOKENS), None, "other"
    )
    return "".join(chunk.text for chunk in await collect(engine, asked))


async def test_two_turns_and_the_cache_between_them(small: Place) -> None:
    async with running(tiny_model()) as engine:
        small.engine = engine  # type: ignore[assignment]
        expected = await _direct(engine, small, "Where is it?")
        cid = await begin(small.log)
        async with small.worker() as worker:
            await ask(small.log, cid, "Where is it?")
            await ended(small, cid)
            await ask(small.log, cid, "And now?")
            first, second = await ended(small, cid, 2)
        assert first.data["text"] == expected
        assert first.data["finish_reason"] in ("end", "length")
        usage = second.data["usage"]
        # all whole blocks of the first prompt; of a random reply, its bytes may read differently
        before = first.data["usage"]["prompt_tokens"]
        assert usage["cached_tokens"] > before - BLOCK_SIZE
        stats = worker.metrics.engine
        assert stats is not None
        assert stats.prefill_tokens_cached >= usage["cached_tokens"]


async def test_the_text_is_the_same_when_its_writer_dies(small: Place) -> None:
    """Cut anywhere, another worker continues to the same text: greedy, and bytes as tokens."""
    async with running(tiny_model()) as engine:
        small.engine = engine  # type: ignore[assignment]
        whole = await _direct(engine, small, "hello")
        for cut in range(1, len(whole), 5):
            cid = await begin(small.log, f"cut{cut}")
            await ask(small.log, cid)
            lease = await take(small.log)
            await small.log.start_reply(lease, BASE)
            await small.log.append_delta(lease, 0, whole[:cut])
            await small.log.release(lease)
            async with small.worker():
                (reply,) = await ended(small, cid)
            if "\ufffd" not in whole[:cut]:  # a half character is not what the model wrote
                assert reply.data["text"] == whole
        assert len(whole) > 5


async def test_stop_frees_the_engine(small: Place) -> None:
    long = small.with_settings(reply_max_tokens=200)
    async with running(tiny_model()) as engine:
        long.engine = engine  # type: ignore[assignment]
        cid = await begin(long.log)
        async with long.worker():
            await ask(long.log, cid)
            changes = long.log.changes()
            async for _ in changes:
                live = (await long.log.catch_up(cid, None, None)).live
                if live is not None and live.text:
                    assert await long.log.stop_reply(cid, live.reply_id)
                    break
            await changes.aclose()  # type: ignore[attr-defined]
        await until(lambda: engine.stats().running == 0)
        (_, reply) = await events_of(long.log, cid)
        assert reply.data["finish_reason"] == "stopped"
