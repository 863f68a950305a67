"""Processes die, or stop for longer than their lease."""

import asyncio
import signal

from bench.faults.place import LEASE_SECONDS
from bench.faults.scenarios.common import Outcome, Running, Setting, opened


async def kills(setting: Setting) -> Outcome:
    """SIGKILL of whatever is there, at random moments under load, with cut sockets between."""
    async with opened(setting, visitors=6, trainer=setting.store != "cluster") as running:

        async def one_round(number: int) -> None:
            await running.pause(0.2, 1.0)
            names = sorted(running.place.processes)
            await running.kill(names[number % len(names)])
            running.setting.rng.choice(running.visitors).proxy.cut()
            running.outcome.faults["socket clean"] += 1

        async with running.talking():
            await running.rounds(setting.times(len(running.place.processes)), one_round)
    return running.outcome


async def rolling_restart(setting: Setting) -> Outcome:
    """Every server and worker is told to end (SIGTERM) and started again, one after the other,
    under load, as an update does it: how long does a visitor wait for the next word?"""
    async with opened(setting, visitors=6, seconds=0.1, words=20) as running:
        names = [name for name in running.place.processes if name != "archiver"]
        gaps: dict[str, float] = {}

        async def one_round(number: int) -> None:
            await running.pause(0.5, 1.0)
            name = names[number % len(names)]
            for visitor in running.visitors:
                visitor.longest_gap = 0.0
            running.outcome.faults[f"restarted {name.partition('-')[0]}"] += 1
            await running.place.replace(name)
            await running.pause(1.0, 1.5)
            longest = max(visitor.longest_gap for visitor in running.visitors)
            gaps[name] = max(gaps.get(name, 0.0), longest)

        async with running.talking():
            await running.rounds(setting.times(len(names)), one_round)
        running.outcome.more["delay_s"] = {name: round(gap, 2) for name, gap in gaps.items()}
        running.outcome.more["delay_limit_s"] = 2.0
    return running.outcome


async def store_kills(setting: Setting) -> Outcome:
    """SIGKILL of the store under load, with its default, ``appendfsync everysec``."""
    return await _store_kills(setting, "everysec")


async def store_kills_always(setting: Setting) -> Outcome:
    """The same with ``appendfsync always``."""
    return await _store_kills(setting, "always")


async def _store_kills(setting: Setting, appendfsync: str) -> Outcome:
    config = {"appendfsync": appendfsync}
    async with opened(setting, visitors=6, config=config) as running:

        async def one_round(_: int) -> None:
            await running.pause(0.3, 1.5)
            await running.kill_store()

        async with running.talking():
            await running.rounds(setting.times(2), one_round)
    return running.outcome


async def stopped_worker(setting: Setting) -> Outcome:
    """A worker is stopped beyond its lease while it writes, and goes on as if nothing had been:
    another one has continued by then, and the store refuses the first one's words."""
    async with opened(setting, visitors=4, seconds=0.1, words=30) as running:

        async def one_round(number: int) -> None:
            asking = asyncio.create_task(running.everybody_asks(f"question {number}"))
            await _everybody_reads(running)
            worker = running.place.processes[f"worker-{number % 2 + 1}"]
            worker.signal(signal.SIGSTOP)
            running.outcome.faults["stopped worker"] += 1
            await asyncio.sleep(1.5 * LEASE_SECONDS)
            worker.signal(signal.SIGCONT)
            await asking

        await running.rounds(setting.times(2), one_round)
    return running.outcome


async def take_over(setting: Setting) -> Outcome:
    """A worker dies in the middle of replies: how long until the visitors see the next word."""
    async with opened(setting, visitors=6, seconds=0.1, words=40) as running:
        gaps: list[float] = []

        async def one_round(number: int) -> None:
            for visitor in running.visitors:
                visitor.longest_gap = 0.0
            asking = asyncio.create_task(running.everybody_asks(f"question {number}"))
            await _everybody_reads(running)
            for visitor in running.visitors:
                visitor.longest_gap = 0.0
            await running.kill(f"worker-{number % 2 + 1}")
            await asking
            gaps.append(max(visitor.longest_gap for visitor in running.visitors))

        await running.rounds(setting.times(2), one_round)
        running.outcome.more["take_over_s"] = [round(gap, 2) for gap in gaps]
        running.outcome.more["take_over_limit_s"] = LEASE_SECONDS + 2.0
    return running.outcome


async def _everybody_reads(running: Running) -> None:
    """Wait until each visitor sees the beginning of a reply."""
    for visitor in running.visitors:
        await visitor.until(
            lambda v=visitor: bool(v.client.state.reply_text),  # type: ignore[misc]
            60.0,
        )
