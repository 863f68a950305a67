"""The network breaks: at every word of a reply, cleanly and in one direction only."""

import asyncio
from typing import Literal

from bench.faults.scenarios.common import PATIENCE, Outcome, Running, Setting, opened
from bench.faults.visitors import Visitor
from chatbot.client_state import ReplyStarted, ReplyText, Update

WORDS = 20
KINDS: tuple[Literal["clean", "up", "down"], ...] = ("clean", "up", "down")


async def cut_sockets(setting: Setting) -> Outcome:
    """Every visitor is cut at a word of its own; all words, all three ways, in each round."""
    places = [(kind, word) for kind in KINDS for word in range(WORDS + 1)]
    async with opened(setting, visitors=len(places), words=WORDS, seconds=0.06) as running:
        for visitor, (kind, word) in zip(running.visitors, places, strict=True):
            visitor.watch = _Cutter(running, kind, word)

        async def one_round(number: int) -> None:
            for visitor in running.visitors:
                assert isinstance(visitor.watch, _Cutter)
                visitor.watch.armed = True
            await running.everybody_asks(f"question {number}")

        await running.rounds(setting.times(1), one_round)
        running.outcome.more["reconnects"] = sum(v.reconnects for v in running.visitors)
    return running.outcome


class _Cutter:
    """Breaks a visitor's connection when it has seen so many words of a reply."""

    def __init__(self, running: Running, kind: Literal["clean", "up", "down"], word: int) -> None:
        self._running = running
        self._kind = kind
        self._word = word
        self.armed = False

    def __call__(self, visitor: Visitor, update: Update) -> None:
        if not self.armed or not isinstance(update, ReplyStarted | ReplyText):
            return
        text = update.so_far if isinstance(update, ReplyText) else ""
        seen = text.count(" ") + ("#" in text)
        if seen < self._word:
            return
        self.armed = False
        self._running.outcome.faults[f"socket {self._kind}"] += 1
        if self._kind == "clean":
            visitor.proxy.cut()
        else:
            visitor.proxy.deafen(self._kind)


async def at_once(setting: Setting) -> Outcome:
    """Two tabs of each visitor, an agent and the bot write at once; each message goes out over
    both servers under one id. One server's clock is an hour ahead, one worker's an hour behind."""
    clocks = {"server-1": 3600.0, "worker-1": -3600.0}
    tabs = 4
    async with opened(setting, visitors=tabs, clocks=clocks, seconds=0.03) as running:
        from contextlib import AsyncExitStack

        from bench.faults.visitors import visiting

        async with AsyncExitStack() as stack:
            others = [
                await stack.enter_async_context(visiting(running.place, visitor.name))
                for visitor in running.visitors
            ]

            async def one_round(number: int) -> None:
                for tab, other in zip(running.visitors, others, strict=True):
                    text, message_id = f"both say {number}", f"both-{number}"
                    tab.sent[message_id] = other.sent[message_id] = text
                    await asyncio.gather(
                        tab.client.send(text, message_id), other.client.send(text, message_id)
                    )
                    running.outcome.faults["sent twice"] += 1
                await asyncio.gather(*(tab.ask(f"tab {number}", PATIENCE) for tab in others))
                await running.everybody_asks(f"first tab {number}")

            await running.rounds(setting.times(3), one_round)
            await _claim_while_the_bot_writes(running)
    return running.outcome


async def _claim_while_the_bot_writes(running: Running) -> None:
    """An agent takes each conversation over in the middle of a reply, and writes."""
    async with running.place.services() as services:
        for number, visitor in enumerate(running.visitors):
            begun = len(visitor.streamed)
            await visitor.say("one more")
            await visitor.until(lambda v=visitor, n=begun: len(v.streamed) > n, PATIENCE)  # type: ignore[misc]
            name = visitor.client.state.conversation_id
            assert name is not None
            await services.log.change_status(
                name,  # type: ignore[arg-type]
                "human",
                reason="claimed",
                actor="anna",
                agent="anna",
            )
            await services.log.append_message(
                name,  # type: ignore[arg-type]
                role="agent",
                text="I am here",
                client_message_id=f"a-{number}",
                author="anna",
            )
            running.outcome.faults["hand-over"] += 1
            visitor.rest()
