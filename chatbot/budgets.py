"""How many tokens a visitor and a site may cost in a day.

Counted is what a reply made the engine compute: prompt tokens that no cache had, and the tokens of
the reply. A reply that was cut counts its whole prompt, since what of it was cached is not known
then. The worker counts when it leaves a reply, however it ended; the server asks before it takes a
message that the bot would have to answer. In between, replies that run already may go over the
limit by what they cost.

A day is one of the store's clock, in UTC. When the store is away nothing is counted: that errs
towards the visitor, and no message can be kept then anyway.
"""

import math
from dataclasses import dataclass

from redis.asyncio import Redis

from chatbot.conversation.store import call_store
from chatbot.errors import BudgetSpent
from chatbot.settings import Settings

# The day is kept beside the count, so that the key does not depend on a caller's clock.
_SPEND = """
local now = tonumber(redis.call('TIME')[1])
local day = math.floor(now / 86400)
if tonumber(redis.call('HGET', KEYS[1], 'day')) ~= day then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'day', day)
end
local spent = redis.call('HINCRBY', KEYS[1], 'tokens', ARGV[1])
redis.call('EXPIREAT', KEYS[1], (day + 1) * 86400 + 3600)
return spent
"""
_SPENT = """
local now = tonumber(redis.call('TIME')[1])
local day = math.floor(now / 86400)
local left = (day + 1) * 86400 - now
if tonumber(redis.call('HGET', KEYS[1], 'day')) ~= day then return { 0, left } end
return { tonumber(redis.call('HGET', KEYS[1], 'tokens')) or 0, left }
"""


@dataclass(frozen=True, slots=True)
class _Account:
    limit: str  # the setting
    key: str
    most: int
    spent_message: str


class TokenBudgets:
    """Counts in the store, for all servers and workers together."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._settings = settings
        self._spend = redis.register_script(_SPEND)
        self._spent = redis.register_script(_SPENT)

    def _accounts(self, site: str, visitor: str) -> tuple[_Account, _Account]:
        return (
            _Account(
                "tokens_per_visitor",
                f"fd:tokens:visitor:{site}:{visitor}",
                self._settings.tokens_per_visitor,
                "you have used up today's automatic answers",
            ),
            _Account(
                "tokens_per_site",
                f"fd:tokens:site:{site}",
                self._settings.tokens_per_site,
                "today's automatic answers of this site are used up",
            ),
        )

    async def spend(self, site: str, visitor: str, tokens: int) -> None:
        """Count ``tokens`` for both. Raises StoreUnavailable, StorageFull."""
        for account in self._accounts(site, visitor):
            await call_store(lambda key=account.key: self._spend(keys=[key], args=[tokens]))  # type: ignore[misc]

    async def check(self, site: str, visitor: str) -> None:
        """Raises:
        BudgetSpent: nothing is left today; ``retry_after`` is the time until the next day.
        StoreUnavailable
        """
        for account in self._accounts(site, visitor):
            spent, left = await call_store(lambda key=account.key: self._spent(keys=[key]))  # type: ignore[misc]
            if spent >= account.most:
                raise BudgetSpent(
                    f"{account.spent_message}: ask for a person, or come back in "
                    f"{readable_time(left)}",
                    retry_after=float(left),
                    limit=account.limit,
                )


def readable_time(seconds: float) -> str:
    """A time that is left, in the largest unit that fits: ``12 s``, ``5 minutes``, ``3 hours``."""
    for size, name in ((3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = math.ceil(seconds / size)
            return f"{count} {name}{'s' if count != 1 else ''}"
    return f"{max(1, math.ceil(seconds))} s"
