"""Clients of the conversation store: one server, or a Redis Cluster.

``redis://host:6379/0`` (``rediss://`` for TLS) is one server. ``redis+cluster://host:port``, or
several ``host:port`` with commas between them, is a cluster; the nodes that are named only need
to be some of it (``rediss+cluster://`` for TLS).
"""

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import BlockingConnectionPool, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from chatbot.errors import SettingsError

CLUSTER = ("redis+cluster://", "rediss+cluster://")
HEALTH_CHECK = 15  # seconds of silence after which a connection is tried before it is used
# A node that is away is asked for again this often, with these pauses (seconds): a caller learns
# within a second or so that the store is away, and a slot that moved is found at once.
NODE_RETRIES, NODE_PAUSES = 1, (0.05, 0.5)
# Every socket of a server may want to read at once. On one server they take turns at so many
# connections, each for a moment; who waits for a turn longer than this is told that it is away.
CONNECTIONS, TURN_SECONDS = 256, 20.0
# A cluster's client has no turns; a node lets in 10,000 clients unless it is told otherwise.
CONNECTIONS_PER_NODE = 10_000


def is_cluster(url: str) -> bool:
    """Whether ``url`` means a Redis Cluster."""
    return url.startswith(CLUSTER)


def open_redis(url: str) -> Redis:
    """A client that decodes replies; the caller closes it. Nothing is connected yet.

    Raises:
        SettingsError: the address cannot be read.
    """
    try:
        if is_cluster(url):
            return _open_cluster(url)
        return Redis.from_pool(
            BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=TURN_SECONDS,
                decode_responses=True,
                health_check_interval=HEALTH_CHECK,
            )
        )
    except ValueError as error:
        raise SettingsError(f"FRONTDESK_REDIS_URL cannot be read: {error}") from None


def _open_cluster(url: str) -> Redis:
    scheme, _, rest = url.partition("://")
    before, at, after = rest.rpartition("@")
    hosts, slash, options = after.partition("/")
    first, *others = hosts.split(",")
    arguments = parse_url(
        f"{scheme.removesuffix('+cluster')}://{before}{at}{first}{slash}{options}"
    )
    arguments["ssl"] = arguments.pop("connection_class", None) is not None
    if arguments.pop("db", 0):
        raise ValueError("a cluster has one database: leave the number out")
    nodes = [ClusterNode(arguments.pop("host"), arguments.pop("port", 6379))]
    nodes += [ClusterNode(host, int(port or 6379)) for host, _, port in map(_split, others)]
    return RedisCluster(
        startup_nodes=nodes,
        decode_responses=True,
        health_check_interval=HEALTH_CHECK,
        max_connections=CONNECTIONS_PER_NODE,
        retry=Retry(ExponentialWithJitterBackoff(*NODE_PAUSES), NODE_RETRIES),
        **arguments,
    )


def _split(host_and_port: str) -> tuple[str, str, str]:
    return host_and_port.partition(":")
