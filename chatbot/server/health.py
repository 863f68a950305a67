"""Is this process alive, and can it serve?

``/healthz`` answers as long as the event loop turns. ``/readyz`` says whether a visitor who comes
now gets an answer: the store and the record must answer, and a worker must be alive. A load
balancer asks ``/readyz?ignore=workers``: messages that come while no worker runs wait in the log,
people can still chat with people, and taking out every server would stop even that.
"""

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError

from chatbot.errors import FrontdeskError, StoreUnavailable
from chatbot.server.state import Room
from chatbot.services import Services

router = APIRouter()
TIMEOUT = 3.0  # seconds; a probe that takes longer is a no


@router.get("/healthz", include_in_schema=False)
async def healthz() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@router.get("/readyz", include_in_schema=False)
async def readyz(request: Request) -> Response:
    """200, or 503 with what is away; ``?ignore=NAME`` leaves a check out."""
    room: Room = request.app.state.room
    store, record, workers = await asyncio.gather(
        _store(room.services), _record(room.services), _workers(room)
    )
    checks = {"store": store, "record": record, "workers": workers, "stopping": "no"}
    if room.stopping.is_set():
        checks["stopping"] = "this server is shutting down"
    ignored = request.query_params.getlist("ignore")
    away = [
        name for name, state in checks.items() if state not in ("ok", "no") and name not in ignored
    ]
    body = {"status": "away" if away else "ok", "away": away, "checks": checks}
    return JSONResponse(body, status_code=503 if away else 200)


async def _store(services: Services) -> str:
    try:
        async with asyncio.timeout(TIMEOUT):
            await services.redis.ping()
    except TimeoutError:
        return f"no answer within {TIMEOUT:.0f} s"
    except (RedisError, OSError) as error:
        return f"away ({type(error).__name__})"
    return "ok"


async def _record(services: Services) -> str:
    try:
        async with asyncio.timeout(TIMEOUT):
            await asyncio.to_thread(services.database.ping)
    except TimeoutError:
        return f"no answer within {TIMEOUT:.0f} s"
    except FrontdeskError as error:
        return f"away ({error.code})"
    return "ok"


async def _workers(room: Room) -> str:
    """Asked anew each time: what the metrics show may be a few seconds old."""
    try:
        async with asyncio.timeout(TIMEOUT):
            alive = await room.workers.alive()
    except TimeoutError:
        return f"no answer within {TIMEOUT:.0f} s"
    except StoreUnavailable:
        return "unknown: the store is away"
    return "ok" if alive else "none is alive"
