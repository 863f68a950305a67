"""The worker with a scripted engine and real stores: every way a reply can go."""

import asyncio
from typing import Any

import pytest

from chatbot.conversation.events import ConversationId, Event
from chatbot.errors import EngineBusy, ModelError, RequestRefused, StoreUnavailable
from chatbot.record.tables import Site
from tests.chatbot.conversation.steps import (
    VISITOR,
    ask,
    begin,
    events_of,
    live_of,
    running_reply,
    shape,
    streaming,
    take,
    until,
)
from tests.chatbot.worker.conftest import LEASE, LONG, Place

BASE = "base-smollm2-135m"


async def ended(place: Place, cid: ConversationId, count: int = 1) -> list[Event]:
    """Ends of replies, once there are ``count``."""
    kinds = ("reply.completed", "reply.failed")

    async def enough() -> bool:
        return sum(e.type in kinds for e in await place.log.read(cid)) >= count

    await until(enough)
    return [event for event in await events_of(place.log, cid) if event.type in kinds]


async def held(place: Place, cid: ConversationId, characters: int) -> None:
    """Wait until the log shows so much of a reply whose engine is held."""

    async def shown() -> bool:
        live = await live_of(place.log, cid)
        return live is not None and len(live.text) >= characters

    await until(shown)


async def test_a_question_is_answered(place: Place) -> None:
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid, "Where is my parcel?")
        (reply,) = await ended(place, cid)
    assert reply.data["text"] == LONG
    assert reply.data["finish_reason"] == "end"
    assert reply.data["version"] == BASE
    assert reply.data["confidence"] == 0.5
    assert reply.data["usage"] == {
        "prompt_tokens": len(place.engine.requests[0].prompt_ids),
        "cached_tokens": 4,
        "completion_tokens": len(LONG),
    }
    assert place.engine.requests[0].adapter is None
    prompt = place.services.settings.system_prompt
    assert place.engine.prompts == [f"System:\n{prompt}\nUser:\nWhere is my parcel?\nAssistant:\n"]


async def test_the_next_prompt_goes_on_where_the_last_ended(place: Place) -> None:
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid, "one")
        await ended(place, cid)
        await ask(place.log, cid, "two")
        await ended(place, cid, 2)
    first, second = (request.prompt_ids for request in place.engine.requests)
    assert second[: len(first)] == first  # so the KV cache serves it


async def test_deltas_come_together(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []
    append = place.log.append_delta

    async def counted(lease: Any, from_char: int, text: str) -> Any:
        writes.append(text)
        return await append(lease, from_char, text)

    monkeypatch.setattr(place.log, "append_delta", counted)
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid)
        await ended(place, cid)
    assert "".join(writes) == LONG
    assert len(writes) < len(LONG) / place.engine.piece / 3


async def test_a_dead_workers_text_goes_on(place: Place) -> None:
    """Greedy text continues character by character as if nobody had died."""
    cid = await begin(place.log)
    await ask(place.log, cid)
    lease = await take(place.log)
    await place.log.start_reply(lease, BASE)
    await place.log.append_delta(lease, 0, LONG[:50])  # and is never heard of again
    async with place.worker():
        (reply,) = await ended(place, cid)
    assert reply.data["text"] == LONG
    assert place.engine.prompts[0].endswith(f"Assistant:\n{LONG[:50]}")
    assert reply.data["usage"]["completion_tokens"] == len(LONG) - 50 + len(LONG[:50].encode())


async def test_a_begun_reply_that_is_long_enough_just_ends(place: Place) -> None:
    short = place.with_settings(reply_max_tokens=10)
    cid = await begin(place.log)
    await ask(place.log, cid)
    lease = await take(place.log)
    await place.log.start_reply(lease, BASE)
    await place.log.append_delta(lease, 0, LONG[:10])
    async with short.worker():
        (reply,) = await ended(place, cid)
    assert (reply.data["text"], reply.data["finish_reason"]) == (LONG[:10], "length")
    assert place.engine.requests == []


async def test_stop_cancels_the_engine_at_once(place: Place) -> None:
    place.engine.hold_at = 60
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid)
        await held(place, cid, 60)
        assert await place.log.stop_reply(cid, await running_reply(place.log, cid))

        async def gone() -> bool:
            return place.engine.running == 0

        await until(gone, LEASE)
        assert len(place.engine.cancelled) == 1
    assert await shape(place.log, cid) == ["visitor: hello", f"bot (stopped): {LONG[:60]}"]


async def test_a_hand_over_silences_the_bot(place: Place) -> None:
    place.engine.hold_at = 30
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid)
        await held(place, cid, 30)
        await place.log.change_status(cid, "human", reason="claimed", actor="a", agent="a")
        place.engine.go.set()

        async def gone() -> bool:
            return place.engine.running == 0

        await until(gone)
        await ask(place.log, cid, "hello?")
    assert (await shape(place.log, cid))[1:] == [
        f"bot (handoff): {LONG[:30]}",
        "bot -> human (claimed)",
        "visitor: hello?",
    ]


async def test_a_busy_engine_is_asked_again(place: Place) -> None:
    place.engine.refuse = [EngineBusy("full", retry_after=0.05)] * 2
    cid = await begin(place.log)
    async with place.worker() as worker:
        await ask(place.log, cid)
        (reply,) = await ended(place, cid)
    assert reply.type == "reply.completed"
    assert _count(worker, "released") == 2
    assert _count(worker, "end") == 1


async def test_who_waits_too_long_is_told_and_gets_people(place: Place) -> None:
    place = place.with_settings(queue_seconds=0.2)
    place.engine.refuse = [EngineBusy("full", retry_after=0.05)] * 1000
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid)
        await ended(place, cid)
    assert (await shape(place.log, cid))[1:] == [
        "failed (busy): ",
        "bot -> waiting (reply_failed)",
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RequestRefused("no room"), "refused"),
        (ModelError("not finite"), "model"),
        (ZeroDivisionError("a bug"), "internal"),
    ],
)
async def test_what_cannot_be_answered_goes_to_people(
    place: Place, error: Exception, reason: str
) -> None:
    place.engine.refuse = [error]
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid)
        (reply,) = await ended(place, cid)
        assert (reply.type, reply.data["reason"]) == ("reply.failed", reason)
        other = await begin(place.log, "c2")  # the worker goes on
        await ask(place.log, other)
        assert (await ended(place, other))[0].type == "reply.completed"
    head = await place.log.head(cid)
    assert head is not None
    assert head.status == "waiting"


async def test_the_live_version_answers_and_a_promotion_holds_from_the_next_reply(
    place: Place,
) -> None:
    place.version("v-1")
    place.version("v-2", live=False)
    place.engine.hold_at = 30
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid, "one")
        await held(place, cid, 30)
        place.services.versions.promote("v-2", "ada", "better", override=True)
        place.engine.go.set()
        await ended(place, cid)
        await ask(place.log, cid, "two")
        first, second = await ended(place, cid, 2)
    assert (first.data["version"], second.data["version"]) == ("v-1", "v-2")
    assert first.data["text"] == LONG
    assert [request.adapter for request in place.engine.requests] == ["v-1", "v-2"]


async def test_a_reply_that_was_begun_keeps_its_version(place: Place) -> None:
    place.version("v-1")
    cid = await begin(place.log)
    await ask(place.log, cid)
    lease = await streaming(place.log, LONG[:10])  # by v-1
    await place.log.release(lease)
    place.version("v-2")
    async with place.worker():
        (reply,) = await ended(place, cid)
    assert (reply.data["version"], reply.data["text"]) == ("v-1", LONG)


async def test_a_playground_is_answered_by_its_own_version(place: Place) -> None:
    place.version("v-1")
    place.version("v-2", live=False)
    cid = ConversationId("p1")
    await place.log.create(cid, site="", visitor=VISITOR, kind="playground", pinned_version="v-2")
    async with place.worker():
        await ask(place.log, cid)
        (reply,) = await ended(place, cid)
    assert reply.data["version"] == "v-2"


@pytest.mark.parametrize("damage", ["changed", "gone"])
async def test_a_corrupted_adapter_never_answers(place: Place, damage: str) -> None:
    weights = place.version("v-1") / "adapter" / "adapter_model.safetensors"
    if damage == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    else:
        weights.unlink()
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid)
        await ended(place, cid)
    assert (await shape(place.log, cid))[1:] == [
        "failed (version_corrupt): ",
        "bot -> waiting (reply_failed)",
    ]
    assert place.engine.requests == []  # not by the base model either
    assert place.engine.adapters == {}


async def test_a_version_is_verified_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.version("v-1")
    verified: list[str] = []
    verify = place.services.versions.verify

    def counted(version_id: str) -> Any:
        verified.append(version_id)
        return verify(version_id)

    monkeypatch.setattr(place.services.versions, "verify", counted)
    names = [await begin(place.log, f"c{n}") for n in range(4)]
    for cid in names:
        await ask(place.log, cid)
    async with place.worker():
        for cid in names:
            await ended(place, cid)
    assert verified == ["v-1"]


async def test_idle_adapters_are_dropped_and_the_live_one_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatbot.worker.worker.HOUSEKEEPING_SECONDS", 0.05)
    place.version("v-1")
    cid = await begin(place.log)
    async with place.worker(adapter_idle_seconds=0.1):
        await ask(place.log, cid, "one")
        await ended(place, cid)
        place.version("v-2")
        await ask(place.log, cid, "two")
        await ended(place, cid, 2)

        async def only_the_live_one() -> bool:
            return set(place.engine.adapters) == {"v-2"}

        await until(only_the_live_one)


async def test_a_site_has_its_own_system_prompt(place: Place) -> None:
    with place.services.database.session() as session:
        session.add(
            Site(name="demo", origins=[], title="", welcome="", system_prompt="Be a pirate.",
                 identity_secret="", created_at=1)
        )  # fmt: skip
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid)
        await ended(place, cid)
    assert place.engine.prompts[0].startswith("System:\nBe a pirate.\n")


async def test_while_the_database_is_away_chats_go_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> Any:
        raise StoreUnavailable("the database cannot be used: away")

    cid = await begin(place.log)
    async with place.worker() as worker:
        await ask(place.log, cid, "one")
        await ended(place, cid)
        monkeypatch.setattr(place.services.versions, "live", away)
        monkeypatch.setattr(worker._context, "_read_prompt", away)
        await ask(place.log, cid, "two")
        replies = await ended(place, cid, 2)
    assert [reply.data["version"] for reply in replies] == [BASE, BASE]


async def test_no_more_replies_at_once_than_the_setting(place: Place) -> None:
    narrow = place.with_settings(max_running=2)
    names = [await begin(place.log, f"c{n}") for n in range(6)]
    for cid in names:
        await ask(place.log, cid)
    place.engine.hold_at = 0
    async with narrow.worker():

        async def full() -> bool:
            return place.engine.running == 2

        await until(full)
        await asyncio.sleep(0.1)  # a third would have come by now
        place.engine.go.set()
        for cid in names:
            await ended(place, cid)
    assert place.engine.most_running == 2


async def test_the_lease_is_kept_while_the_engine_thinks(place: Place) -> None:
    place.engine.hold_at = 0
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid)

        async def thinking() -> bool:
            return place.engine.running == 1

        await until(thinking)
        assert await place.log.take_job("another", LEASE * 4) is None
        place.engine.go.set()
        (reply,) = await ended(place, cid)
    assert reply.data["text"] == LONG
    assert len(place.engine.requests) == 1


async def test_a_stop_lets_replies_end(place: Place) -> None:
    place.engine.hold_at = 30
    cid = await begin(place.log)
    async with place.worker():
        await ask(place.log, cid)
        await held(place, cid, 30)
        asyncio.get_running_loop().call_later(0.2, place.engine.go.set)
    (reply,) = await ended(place, cid)
    assert reply.data["text"] == LONG


async def test_a_stop_gives_back_what_does_not_end(place: Place) -> None:
    place.engine.hold_at = 30
    cid = await begin(place.log)
    async with place.worker(drain_seconds=0.1) as worker:
        await ask(place.log, cid)
        await held(place, cid, 30)
    assert _count(worker, "released") == 1
    assert place.engine.running == 0
    lease = await place.log.take_job("another", 0.1)  # at once, not after the lease
    assert lease is not None
    assert lease.streamed == LONG[: len(lease.streamed)]
    assert (len(lease.streamed), lease.attempt) == (30, 1)


async def test_a_worker_whose_reply_was_taken_over_stops(place: Place) -> None:
    """It was silent too long, e.g. suspended: another one writes now."""
    place.engine.hold_at = 30
    cid = await begin(place.log)
    async with place.worker() as worker:
        await ask(place.log, cid)
        await held(place, cid, 30)
        fields = await place.services.redis.hgetall("fd:{" + _lane(cid) + "}:head:c1")
        await place.services.redis.hset(
            "fd:{" + _lane(cid) + "}:head:c1", "fence", str(int(fields["fence"]) + 1)
        )

        async def lost() -> bool:
            return _count(worker, "lost") == 1

        await until(lost)
        assert place.engine.running == 0


def _lane(cid: ConversationId) -> str:
    from chatbot.conversation.keys import lane_of

    return f"{lane_of(cid):02d}"


def _count(worker: Any, outcome: str) -> float:
    value = worker.metrics.registry.get_sample_value(
        "frontdesk_replies_total", {"outcome": outcome}
    )
    assert value is not None
    return float(value)
