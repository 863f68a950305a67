"""One subscription to what changes in any conversation.

A notification is a wake-up, never data: losing one costs nothing as long as the reader hears that
it may have lost some. So every (re)connection is told as None.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from chatbot.conversation import keys
from chatbot.conversation.events import ConversationId
from chatbot.conversation.store import as_text

log = structlog.get_logger()

BATCH = 1024  # wake-ups that are read and made one per conversation before they are handed on
SILENCE = 10.0  # seconds without a message until the connection is tried with a ping
BACKOFF = (0.1, 2.0)  # seconds before the first and at most before any other reconnection
CONFIRMED = ("subscribe", "ssubscribe")


async def follow(redis: Redis) -> AsyncGenerator[ConversationId | None, None]:
    """Yield ids of conversations that changed; None after each (re)connection. Never ends by
    itself; close the iterator."""
    pause = BACKOFF[0]
    while True:
        channel = redis.pubsub()
        try:
            channels = keys.lane_keys(keys.NOTIFY)
            await channel.subscribe(*channels)
            async with contextlib.aclosing(messages(channel, channels)) as items:
                async for item in items:
                    pause = BACKOFF[0]
                    yield item
        except (RedisError, OSError) as error:
            log.warning("log.subscription_lost", error=type(error).__name__, retry_in=pause)
        finally:
            with contextlib.suppress(RedisError, OSError):
                await channel.aclose()
        await asyncio.sleep(pause)
        pause = min(2 * pause, BACKOFF[1])


async def messages(
    channel: Any, channels: list[str]
) -> AsyncGenerator[ConversationId | None, None]:
    """Wake-ups of one subscription, doubles within a batch left out; None when it was made for
    the last of ``channels``. redis-py reconnects and subscribes again unseen, except that the
    confirmations come again: they are the sign."""
    asked = False
    while True:
        message = await channel.get_message(timeout=SILENCE)
        if message is None:
            if asked:
                raise ConnectionError("the subscription does not answer")
            await channel.ping()
            asked = True
            continue
        asked = False
        batch: dict[ConversationId | None, None] = {}
        for _ in range(BATCH):
            _note(batch, message, channels[-1])
            message = await channel.get_message(timeout=0.0)
            if message is None:
                break
        else:
            _note(batch, message, channels[-1])
        for item in batch:
            yield item


def _note(batch: dict[ConversationId | None, None], message: dict[str, Any], last: str) -> None:
    kind = message["type"]
    if kind in ("message", "smessage"):
        batch[ConversationId(as_text(message["data"]))] = None
    elif kind in CONFIRMED and as_text(message["channel"]) == last:
        batch.clear()
        batch[None] = None
    elif kind == "sunsubscribe":
        raise ConnectionError("the lane moved to another node of the cluster")
