"""Every key of the completions' way through the store. A server's keys share a hash tag, so that
one script may touch them on a Redis Cluster; the queue is used alone."""

JOBS = "fd:api:jobs"  # stream; group GROUP; one entry a request that waits
GROUP = "workers"
CONSUMER = "worker"  # one for all: a job is taken off as soon as its server knows who has it
EVENTS = "fd:api:{{{server}}}:events"  # stream; what workers have to say to one server
STOPS = "fd:api:{{{server}}}:stops:{channel}"  # set; requests that nobody waits for any more


def events_key(server: str) -> str:
    return EVENTS.format(server=server)


def stops_key(server: str, channel: str) -> str:
    return STOPS.format(server=server, channel=channel)
