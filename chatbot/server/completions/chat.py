"""``POST /v1/chat/completions``."""

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request, Response

from chatbot.server.auth import services_of
from chatbot.server.completions.access import Caller
from chatbot.server.completions.answers import Answer
from chatbot.server.completions.errors import OpenAiRoute, Refused
from chatbot.server.completions.models import resolve
from chatbot.server.completions.reply import Reply
from chatbot.server.completions.schema import ChatRequest, inlined, read_request
from chatbot.server.state import Room

router = APIRouter(prefix="/v1/chat", tags=["openai"], route_class=OpenAiRoute)
MOST_BYTES = 4 * 1024 * 1024
_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": inlined(ChatRequest.model_json_schema())}},
    }
}


@router.post("/completions", openapi_extra=_SCHEMA)
async def completions(key: Caller, request: Request) -> Response:
    """A reply of the model ``model`` (a version, or ``live``) to the messages, whole or as
    server-sent events. Closing the connection stops the work."""
    room: Room = request.app.state.room
    services = services_of(request)
    asked = read_request(await _body(request), services.settings)
    version = await asyncio.to_thread(resolve, services, asked.model)
    reply = Reply(room.metrics.completions, Answer(version.id, asked.include_usage))
    with reply.counted():
        ticket = await room.exchange.ask(
            version.id, asked.chat(), asked.sampling(services.settings), salt=f"key:{key}"
        )
        if asked.stream:
            return await reply.streamed(ticket, request)
        return await reply.whole(ticket, request)


async def _body(request: Request) -> Any:
    """Raises Refused."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise Refused(f"the body is longer than {MOST_BYTES} bytes", code="too_long")
        parts.append(part)
    try:
        found = json.loads(b"".join(parts))
        json.dumps(found, ensure_ascii=False).encode()  # neither store nor answer could hold it
        return found
    except RecursionError:
        raise Refused("the body is nested too deeply", code="invalid_json") from None
    except UnicodeEncodeError:
        raise Refused("the body holds half of a surrogate pair: send whole characters") from None
    except ValueError:
        raise Refused("the body is not JSON", code="invalid_json") from None
