"""Random walks: the real log and the fake take the same steps and must tell the same story."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from chatbot.conversation.events import ConversationId, Lease
from chatbot.conversation.interface import ConversationLog
from chatbot.conversation.keys import keys_of
from chatbot.conversation.log import RedisLog
from chatbot.conversation.rules import turn_after
from chatbot.errors import FrontdeskError
from tests.chatbot.conversation.memory_log import MemoryLog
from tests.chatbot.conversation.steps import VISITOR, complete, shape

CID = ConversationId("walk")
LONG_LEASE = 1000.0  # nobody dies of old age here: steps have no clock
AGENTS = st.sampled_from(["anna", "ben"])
TEXTS = st.text(max_size=6)
ENDS = ["complete", "hand over", "hand over and back", "stop", "die"]


def machine(url: str) -> type[RuleBasedStateMachine]:
    """The state machine on the store at ``url``."""

    class Walk(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.runner = asyncio.Runner()
            self.redis = self.run(self._connect())
            self.fake = MemoryLog(LONG_LEASE, 3)
            self.logs: list[ConversationLog] = [
                RedisLog(self.redis, None, LONG_LEASE, 3),
                self.fake,
            ]
            self.leases: list[tuple[Lease, Lease]] = []  # of all attempts, the last one valid
            self.text = ""
            self.count = 0
            self.both(lambda log: log.create(CID, site="demo", visitor=VISITOR))

        async def _connect(self) -> Redis:
            client = Redis.from_url(url, decode_responses=True)
            await client.flushdb()
            return client

        def run(self, work: Awaitable[Any]) -> Any:
            async def wait() -> Any:
                return await work

            return self.runner.run(wait())

        def both(self, step: Callable[[ConversationLog], Awaitable[Any]]) -> list[Any]:
            """Take a step on both logs; the outcome, or the kind of error, is the same."""
            results = []
            for log in self.logs:
                try:
                    results.append(self.run(step(log)))
                except FrontdeskError as error:
                    results.append(type(error))
            real, fake = results
            if not isinstance(real, Lease) and not hasattr(real, "epoch"):
                assert real == fake
            return results

        @rule(number=st.integers(1, 6), text=TEXTS)
        def visitor_writes(self, number: int, text: str) -> None:
            self.both(
                lambda log: log.append_message(
                    CID, role="visitor", text=text, client_message_id=f"m{number}", author="v1"
                )
            )

        @rule(number=st.integers(1, 4), agent=AGENTS)
        def agent_writes(self, number: int, agent: str) -> None:
            self.both(
                lambda log: log.append_message(
                    CID, role="agent", text="a", client_message_id=f"m{number}", author=agent
                )
            )

        @rule(score=st.integers(0, 6))
        def rated(self, score: int) -> None:
            self.both(lambda log: log.give_rating(CID, score=score, comment=""))

        @rule(status=st.sampled_from(["bot", "waiting", "human", "closed"]), agent=AGENTS)
        def moved(self, status: Any, agent: str) -> None:
            self.both(
                lambda log: log.change_status(CID, status, reason="r", actor=agent, agent=agent)
            )

        @rule()
        def taken(self) -> None:
            real, fake = self.both(lambda log: log.take_job("w", 0.0))
            assert (real is None) == (fake is None)
            if real is not None:
                same = ("attempt", "streamed", "upto", "conversation_id")
                assert [getattr(real, n) for n in same] == [getattr(fake, n) for n in same]
                self.leases.append((real, fake))
                self.text = real.streamed

        def on_lease(self, index: int, step: Callable[[ConversationLog, Lease], Any]) -> Any:
            pair = dict(zip(self.logs, self.leases[index], strict=True))
            return self.both(lambda log: step(log, pair[log]))[0]

        @rule(
            texts=st.lists(TEXTS, max_size=3),
            end=st.sampled_from(ENDS),
            again=st.booleans(),
            more=st.booleans(),
        )
        def served(self, texts: list[str], end: str, again: bool, more: bool) -> None:
            """A worker's usual way, as far as it gets; single steps alone rarely get far."""
            self.visitor_writes_anew()
            self.taken()
            if not self.leases:
                return
            self.on_lease(-1, lambda log, lease: log.start_reply(lease, "v-1"))
            for text in texts:
                place = len(self.text)
                for _ in range(1 + again):  # its answer was lost, so it is sent again
                    outcome = self.on_lease(
                        -1, lambda log, lease, p=place, t=text: log.append_delta(lease, p, t)
                    )
                if outcome == "written":
                    self.text += text
            if more:
                self.visitor_writes_anew()
            if end == "complete":
                self.completed("v-1", whole=True)
            elif end.startswith("hand over"):
                self.moved("waiting", "anna")
                if end.endswith("back"):
                    self.moved("bot", "anna")
            elif end == "stop":
                self.on_lease(-1, lambda log, lease: log.stop_reply(CID, lease.reply_id))

        def visitor_writes_anew(self) -> None:
            self.count += 1
            name = f"n{self.count}"
            self.both(
                lambda log: log.append_message(
                    CID, role="visitor", text="q", client_message_id=name, author="v1"
                )
            )

        @precondition(lambda self: self.leases)
        @rule(data=st.data(), version=st.sampled_from(["v-1", "v-2"]))
        def started(self, data: Any, version: str) -> None:
            index = data.draw(st.integers(0, len(self.leases) - 1))
            self.on_lease(index, lambda log, lease: log.start_reply(lease, version))

        @precondition(lambda self: self.leases)
        @rule(data=st.data(), text=TEXTS, shift=st.sampled_from([0, 0, 0, 1, -1]))
        def streamed(self, data: Any, text: str, shift: int) -> None:
            index = data.draw(st.integers(0, len(self.leases) - 1))
            place = max(0, len(self.text) + shift)
            step = self.on_lease(index, lambda log, lease: log.append_delta(lease, place, text))
            if step == "written" and place == len(self.text):
                self.text += text

        @precondition(lambda self: self.leases)
        @rule(version=st.sampled_from(["v-1", "v-2"]), whole=st.booleans())
        def completed(self, version: str, whole: bool) -> None:
            text = self.text if whole else self.text + "!"
            self.on_lease(-1, lambda log, lease: complete(log, lease, text, version))

        @precondition(lambda self: self.leases)
        @rule()
        def failed(self) -> None:
            self.on_lease(-1, lambda log, lease: log.fail_reply(lease, version="v-1", reason="x"))

        @precondition(lambda self: self.leases)
        @rule()
        def released(self) -> None:
            self.on_lease(-1, lambda log, lease: log.release(lease))

        @precondition(lambda self: self.leases)
        @rule(data=st.data())
        def stopped(self, data: Any) -> None:
            index = data.draw(st.integers(0, len(self.leases) - 1))
            self.on_lease(index, lambda log, lease: log.stop_reply(CID, lease.reply_id))

        @invariant()
        def the_same_story(self) -> None:
            real, fake = (self.run(shape(log, CID)) for log in self.logs)
            assert real == fake
            heads = [self.run(log.head(CID)) for log in self.logs]
            assert heads[0].status == heads[1].status
            assert heads[0].agent == heads[1].agent
            live = [self.run(log.catch_up(CID, None, None)).live for log in self.logs]
            assert (live[0] and live[0].text) == (live[1] and live[1].text)

        @invariant()
        def the_turn_can_be_read_from_the_events(self) -> None:
            events = self.run(self.logs[0].read(CID))
            turn = turn_after(events)
            fields = self.run(self.redis.hgetall(keys_of(CID).head))
            assert (fields["status"], fields["agent"]) == (turn.status, turn.agent)
            assert (fields["reply"] != "") == turn.bot_owes_reply
            assert self.fake.owes_reply(CID) == turn.bot_owes_reply

        @invariant()
        def people_are_not_talked_over(self) -> None:
            status = "bot"
            for event in self.run(self.logs[0].read(CID)):
                if event.type == "status.changed":
                    status = event.data["status"]
                elif event.type.startswith("reply."):
                    assert status == "bot"

        def teardown(self) -> None:
            self.run(self.redis.aclose())
            self.runner.close()

    return Walk


def test_random_walks(redis_url: str) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine(redis_url),
        settings=settings(
            max_examples=80,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
