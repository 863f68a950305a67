"""What one reply may take: time, and tokens, which are counted for its visitor and site."""

from typing import Any

import pytest

from chatbot.conversation.events import ConversationId
from chatbot.presence import WorkerPresence
from tests.chatbot.conversation.steps import VISITOR, ask, begin, live_of, shape, until
from tests.chatbot.worker.conftest import LONG, Place
from tests.chatbot.worker.test_worker import ended


async def _tokens(place: Place) -> dict[str, int]:
    """Tokens counted today, by account."""
    found = {}
    async for key in place.services.redis.scan_iter("fd:tokens:*"):
        found[key.removeprefix("fd:tokens:")] = int(await place.services.redis.hget(key, "tokens"))
    return found


def _limited(worker: Any, limit: str) -> float:
    return float(
        worker.metrics.registry.get_sample_value("frontdesk_limited_total", {"limit": limit})
    )


async def test_a_reply_that_takes_too_long_ends_with_what_is_there(place: Place) -> None:
    place = place.with_settings(reply_seconds=1.0)
    place.engine.hold_at = 30
    cid = await begin(place.log)
    async with place.worker() as worker:
        await ask(place.log, cid)
        (reply,) = await ended(place, cid)
        assert reply.data["finish_reason"] == "length"
        assert reply.data["text"]
        assert LONG[:30].startswith(reply.data["text"])
        await until(lambda: _is(place.engine.running == 0))  # the work has ended too
        assert _limited(worker, "reply_seconds") == 1


async def test_an_engine_that_writes_nothing_is_given_up(place: Place) -> None:
    place = place.with_settings(reply_seconds=0.2)
    place.engine.hold_at = 0
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid)
        await ended(place, cid)
        assert (await shape(place.log, cid))[1:] == [
            "failed (too_slow): ",
            "bot -> waiting (reply_failed)",
        ]


async def test_tokens_of_a_reply_are_counted(place: Place) -> None:
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid)
        (reply,) = await ended(place, cid)
        usage = reply.data["usage"]
        cost = usage["prompt_tokens"] - usage["cached_tokens"] + usage["completion_tokens"]
        assert cost > len(LONG)
        await until(lambda: _counted(place))
    assert await _tokens(place) == {"site:demo": cost, f"visitor:demo:{VISITOR}": cost}


async def test_a_stopped_reply_counts_what_was_computed(place: Place) -> None:
    place.engine.hold_at = 30
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid)
        live = None
        while live is None or len(live.text) < 30:
            live = await live_of(place.log, cid)
        await place.log.stop_reply(cid, live.reply_id)
        place.engine.go.set()
        await until(lambda: _counted(place))
    (request,) = place.engine.requests
    counted = (await _tokens(place))["site:demo"]
    assert counted >= len(request.prompt_ids) + 10  # pieces of three characters


async def test_playgrounds_cost_nobody_anything(place: Place) -> None:
    cid = ConversationId("p1")
    await place.log.create(cid, site="", visitor=VISITOR, kind="playground")
    async with place.worker():
        await ask(place.log, cid)
        await ended(place, cid)
    assert await _tokens(place) == {}


async def test_a_worker_says_that_it_is_alive_and_when_it_leaves(place: Place) -> None:
    presence = WorkerPresence(place.services.redis)
    cid = await begin(place.log)
    async with place.worker() as worker:
        await ask(place.log, cid)
        await ended(place, cid)
        await until(lambda: _alive(presence))
        assert (await presence.alive())["w"].slots == place.services.settings.max_running
        assert worker._seconds_per_reply == pytest.approx(10, abs=10)
    assert await presence.alive() == {}


async def _alive(presence: WorkerPresence) -> bool:
    return bool(await presence.alive())


async def _counted(place: Place) -> bool:
    return len(await _tokens(place)) == 2


async def _is(value: bool) -> bool:
    return value
