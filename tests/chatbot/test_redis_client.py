"""The client of the conversation store under many callers at once."""

import asyncio

from chatbot.redis_client import CONNECTIONS, open_redis


async def test_more_callers_than_connections_take_turns(redis_url: str) -> None:
    client = open_redis(redis_url)
    try:
        answers = await asyncio.gather(*(client.echo(str(n)) for n in range(5 * CONNECTIONS)))
        assert answers == [str(n) for n in range(5 * CONNECTIONS)]
        assert (await client.info("clients"))["connected_clients"] <= CONNECTIONS + 10
    finally:
        await client.aclose()
