"""The stores lose everything, have no room, or are away."""

import asyncio
import sqlite3
import statistics
from contextlib import closing

from bench.faults.scenarios.common import PATIENCE, Outcome, Running, Setting, opened
from bench.faults.stores import Store
from chatbot.conversation.events import ConversationId


def _single(running: Running) -> Store:
    store = running.place.store
    assert isinstance(store, Store)
    return store


async def _recorded(running: Running) -> None:
    """Wait until the record has everything."""
    async with running.place.services() as services, asyncio.timeout(PATIENCE):
        while await services.log.unrecorded():  # noqa: ASYNC110 - another process records it
            await asyncio.sleep(0.05)


async def forgotten(setting: Setting) -> Outcome:
    """The store is flushed, and restarted with nothing, in turn: everybody reloads, and goes on
    with what the record has. What is not recorded yet would be gone, so that is waited for."""
    async with opened(setting, visitors=4) as running:
        reloads = 0

        async def one_round(number: int) -> None:
            nonlocal reloads
            await running.everybody_asks(f"question {number}")
            await _recorded(running)
            before = sum(visitor.reloads for visitor in running.visitors)
            if number % 2:
                await asyncio.to_thread(running.place.store.flush)
            else:
                await asyncio.to_thread(_single(running).forget)
            running.outcome.faults["store emptied"] += 1
            await running.everybody_asks(f"afterwards {number}")
            reloads += sum(visitor.reloads for visitor in running.visitors) - before

        await running.rounds(setting.times(2), one_round)
        running.outcome.more["reloads"] = reloads
    return running.outcome


async def full(setting: Setting) -> Outcome:
    """No memory (``maxmemory`` with noeviction), and a disk on which nothing more fits: messages
    wait, and arrive once."""
    async with opened(setting, visitors=4) as running:
        store = _single(running)

        async def one_round(number: int) -> None:
            await running.everybody_asks(f"before {number}")
            if number % 2:
                await asyncio.to_thread(store.fill_disk)
            else:
                await asyncio.to_thread(store.fill_memory)
            running.outcome.faults["no memory" if number % 2 == 0 else "disk full"] += 1
            asking = asyncio.create_task(running.everybody_asks(f"during {number}"))
            await running.pause(1.0, 2.0)
            await asyncio.to_thread(store.make_room)
            await asking

        await running.rounds(setting.times(2), one_round)
    return running.outcome


async def record_away(setting: Setting) -> Outcome:
    """Nobody can write to the database for a while, and an archiver dies meanwhile. Chats go on;
    afterwards everything is recorded once."""
    async with opened(setting, visitors=4, seconds=0.02) as running:
        database = running.place.data_dir / "record.db"
        assert database.is_file(), f"the record is not in {database}"

        async def one_round(number: int) -> None:
            with closing(sqlite3.connect(database, isolation_level=None)) as lock:
                lock.execute("BEGIN IMMEDIATE")
                running.outcome.faults["database away"] += 1
                await running.everybody_asks(f"away {number}")
                await running.kill("archiver")
                await running.everybody_asks(f"still away {number}")
                lock.execute("ROLLBACK")

        await running.rounds(setting.times(1), one_round)
    return running.outcome


async def power_cuts(setting: Setting) -> Outcome:
    """The power fails under load; messages are acknowledged when they are on the disk."""
    return await _power_cuts(setting, "disk")


async def power_cuts_unguarded(setting: Setting) -> Outcome:
    """The same with the default, ``FRONTDESK_ACKNOWLEDGE=store``: what is lost is counted in
    ``lost_messages`` and is no finding, since nothing else was promised."""
    return await _power_cuts(setting, "store")


async def _power_cuts(setting: Setting, acknowledge: str) -> Outcome:
    settings = {"FRONTDESK_ACKNOWLEDGE": acknowledge}
    async with opened(setting, visitors=6, words=5, seconds=0.02, settings=settings) as running:
        store = _single(running)

        async def one_round(_: int) -> None:
            await running.pause(0.5, 1.5)
            synced = await asyncio.to_thread(store.stop_syncing)
            await running.pause(0.2, 1.0)  # what is written now, the disk never sees
            await asyncio.to_thread(store.cut_power, synced)
            running.outcome.faults["power cut"] += 1
            await asyncio.to_thread(store.start)

        async with running.talking():
            await running.rounds(setting.times(2), one_round)
        waits = sorted(wait for visitor in running.visitors for wait in visitor.waits)
        running.outcome.more["acknowledged_after_ms_p50"] = round(
            1000 * statistics.median(waits), 1
        )
        if acknowledge == "store":
            await _count_lost(running)
            running.outcome.more["unanswered_messages"] = running.outcome.unanswered
            running.outcome.unanswered = 0  # what is lost is not answered either
    return running.outcome


async def _count_lost(running: Running) -> None:
    """Messages that were acknowledged and are gone; they are taken out of what is compared."""
    lost = 0
    async with running.place.services() as services:
        for visitor in running.visitors:
            name = ConversationId(visitor.client.state.conversation_id or "")
            events = await services.log.read(name)
            there = {event.data.get("client_message_id") for event in events}
            gone = [message_id for message_id in visitor.acknowledged if message_id not in there]
            lost += len(gone)
            for message_id in gone:
                del visitor.acknowledged[message_id]
    running.outcome.more["lost_messages"] = lost
