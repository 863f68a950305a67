"""How long a worker's loops wait."""

import asyncio

BACKOFF = (0.2, 5.0)  # seconds to wait while the store is away: the first time, and at most


async def sleep_or(stop: asyncio.Event, seconds: float) -> None:
    """Sleep, unless ``stop`` is set meanwhile."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        pass
