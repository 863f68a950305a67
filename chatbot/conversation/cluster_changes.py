"""What changes in any conversation, on a Redis Cluster.

Scripts publish to their lane's shard channel, which only the node that holds the lane's slot
hears. So there is one subscription per node, made over a connection to that very node: redis-py's
own cluster subscription asks its nodes one after the other, each for the whole time-out. When one
of them breaks, or a lane moves, all are made again.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from chatbot.conversation import changes, keys
from chatbot.conversation.events import ConversationId
from chatbot.crew import end_tasks

log = structlog.get_logger()

_ERRORS = (RedisError, RedisClusterException, OSError)
# What of the cluster client's options a connection to one node is made with
_OPTIONS = ("username", "password", "socket_connect_timeout", "socket_timeout", "decode_responses")


class _Woken:
    """What changed and was not handed on yet: each conversation once, so it cannot grow beyond
    their number. ``None``, anything may have changed, is all there is to say."""

    def __init__(self) -> None:
        self._items: dict[ConversationId | None, None] = {}
        self._news = asyncio.Event()
        self._silent: set[str] = set()  # nodes whose subscription is not made yet

    def expect(self, nodes: list[str]) -> None:
        self._silent = set(nodes)

    def add(self, node: str, item: ConversationId | None) -> None:
        if item is None:
            self._silent.discard(node)
            if self._silent:
                return  # not all nodes are heard: whoever looks now may miss what comes next
            self._items.clear()
        if None not in self._items:
            self._items[item] = None
        self._news.set()

    async def take(self) -> list[ConversationId | None]:
        await self._news.wait()
        self._news.clear()
        items = list(self._items)
        self._items.clear()
        return items


async def follow(cluster: Any) -> AsyncGenerator[ConversationId | None, None]:
    """As :func:`chatbot.conversation.changes.follow`: None after each time that all nodes were
    subscribed to."""
    pause = changes.BACKOFF[0]
    while True:
        try:
            async with contextlib.aclosing(_follow_nodes(cluster)) as items:
                async for item in items:
                    pause = changes.BACKOFF[0]
                    yield item
        except _ERRORS as error:
            log.warning("log.subscription_lost", error=type(error).__name__, retry_in=pause)
        await asyncio.sleep(pause)
        pause = min(2 * pause, changes.BACKOFF[1])
        with contextlib.suppress(*_ERRORS):
            await cluster.nodes_manager.initialize()  # where the lanes are now


async def _follow_nodes(cluster: Any) -> AsyncGenerator[ConversationId | None, None]:
    await cluster.initialize()
    lanes: defaultdict[str, list[str]] = defaultdict(list)
    for channel in keys.lane_keys(keys.NOTIFY):
        lanes[cluster.get_node_from_key(channel).name].append(channel)
    woken = _Woken()
    woken.expect(list(lanes))
    followers = [
        asyncio.create_task(_follow_node(cluster, name, channels, woken), name=f"changes {name}")
        for name, channels in lanes.items()
    ]
    taking: asyncio.Task[list[ConversationId | None]] | None = None
    try:
        while True:
            taking = asyncio.create_task(woken.take())
            await asyncio.wait({taking, *followers}, return_when=asyncio.FIRST_COMPLETED)
            for follower in followers:
                if follower.done():
                    follower.result()
            for item in await taking:
                yield item
    finally:
        await end_tasks([*followers, *([taking] if taking else [])])


async def _follow_node(cluster: Any, name: str, channels: list[str], woken: _Woken) -> None:
    """Ends only with an error."""
    client = _node_client(cluster, name)
    try:
        async with client.pubsub() as channel:
            for lane in channels:  # one command each: they are of different slots
                await channel.ssubscribe(lane)
            items = changes.messages(channel, channels)
            async with contextlib.aclosing(items):
                async for item in items:
                    woken.add(name, item)
    finally:
        await client.aclose()
    raise ConnectionError("the subscription ended")


def _node_client(cluster: Any, name: str) -> Redis:
    """A client of one node that does not reconnect by itself: redis-py would then subscribe to all
    lanes in one command, which a cluster refuses."""
    options = cluster.get_connection_kwargs()
    node = cluster.get_node(node_name=name)
    connection = {key: options[key] for key in _OPTIONS if key in options}
    secure = {key: value for key, value in options.items() if key.startswith("ssl_")}
    if secure:
        secure["ssl"] = True
    return Redis(
        host=node.host, port=node.port, retry=Retry(NoBackoff(), 0), **connection, **secure
    )
