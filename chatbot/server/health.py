"""Is this process alive, and can it serve?

``/healthz`` answers as long as the event loop turns. ``/readyz`` says whether this server can
take a message and keep it: the store and the record must answer. Workers are not part of that:
a message that comes while none runs waits in the log, and taking every server out of the load
balancer because the workers restart would lose more than it saves.
"""

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError

from chatbot.errors import FrontdeskError
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
    """200, or 503 with what is away."""
    room: Room = request.app.state.room
    store, record = await asyncio.gather(_store(room.services), _record(room.services))
    checks = {"store": store, "record": record, "stopping": "no"}
    if room.stopping.is_set():
        checks["stopping"] = "this server is shutting down"
    away = [name for name, state in checks.items() if state not in ("ok", "no")]
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
