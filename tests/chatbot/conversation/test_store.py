"""What the store's errors mean to the rest of the product."""

import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import Connection

from chatbot.conversation.store import call_store, store_errors
from chatbot.errors import StoreUnavailable


async def _write_to_a_closed_connection() -> None:
    """What a task meets when another one has just closed the connection that it writes to."""
    await Connection(port=1)._send_packed_command([b"PING"])


async def test_a_connection_that_is_closed_meanwhile_is_a_store_that_is_away() -> None:
    with pytest.raises(AttributeError):  # redis-py's own: when it is mended, so may we be
        await _write_to_a_closed_connection()
    with pytest.raises(StoreUnavailable), store_errors():
        await _write_to_a_closed_connection()


async def test_it_is_tried_again(redis: Redis) -> None:
    tries = 0

    async def call() -> bool:
        nonlocal tries
        tries += 1
        if tries == 1:
            await _write_to_a_closed_connection()
        return bool(await redis.ping())

    assert await call_store(call)
    assert tries == 2


async def test_a_mistake_of_ours_stays_one() -> None:
    with pytest.raises(AttributeError), store_errors():
        None.lower()  # type: ignore[attr-defined]
