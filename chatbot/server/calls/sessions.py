"""Calls over HTTP: ``/v1/assist/sessions``."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response, status
from pydantic import BaseModel

from chatbot.conversation.events import Head
from chatbot.server.auth import signer_of
from chatbot.server.calls.access import Who, open_call
from chatbot.server.calls.desk import CallDesk
from chatbot.server.calls.schema import CallBegin, CallClose, ChatwootFind, Feedback, FragmentsBody
from chatbot.server.calls.view import call_view
from chatbot.server.channels import chatwoot_id
from chatbot.server.state import Room

router = APIRouter(prefix="/v1/assist/sessions", tags=["calls"])
SessionId = Annotated[str, Path(max_length=64)]


class HeardAnswer(BaseModel):
    results: list[dict[str, Any]]


class PanelToken(BaseModel):
    """``expires_at``: Unix ms."""

    token: str
    expires_at: int


def room_of(request: Request) -> Room:
    room: Room = request.app.state.room
    return room


@router.post("", status_code=status.HTTP_201_CREATED, responses={200: {"model": dict[str, Any]}})
async def begin(request: Request, response: Response, who: Who, body: CallBegin) -> dict[str, Any]:
    """Begin a call; the same ``call_id`` of the site again: 200 and the same call, as it is."""
    room = room_of(request)
    head, new = await CallDesk(room).begin(who, body)
    if not new:
        response.status_code = status.HTTP_200_OK
    return await _view(room, head)


@router.post("/chatwoot")
async def find_chatwoot(request: Request, who: Who, body: ChatwootFind) -> dict[str, Any]:
    """A conversation that Chatwoot's agent bot has here, for the panel in Chatwoot. Staff only;
    404: the bot does not have it."""
    room = room_of(request)
    key = room.services.secret_key
    name = chatwoot_id(key, body.site, body.account, body.conversation)
    return await _view(room, await open_call(room.services, who, name))


@router.get("/{session_id}")
async def read(request: Request, who: Who, session_id: SessionId) -> dict[str, Any]:
    """The call as it is: transcript with partials, summary, drafts and hints for what is open."""
    room = room_of(request)
    head = await open_call(room.services, who, session_id)
    await CallDesk(room).ask(head.conversation_id)
    return await _view(room, head)


@router.post("/{session_id}/fragments")
async def hear(
    request: Request, who: Who, session_id: SessionId, body: FragmentsBody
) -> HeardAnswer:
    """Take one fragment, or several as ``{"fragments": [...]}``."""
    room = room_of(request)
    head = await open_call(room.services, who, session_id)
    heard = await CallDesk(room).hear(who, head, body.fragments)
    return HeardAnswer(results=[one.to_wire() for one in heard])


@router.post("/{session_id}/feedback", status_code=status.HTTP_204_NO_CONTENT)
async def feedback(request: Request, who: Who, session_id: SessionId, body: Feedback) -> Response:
    """What became of drafts. 409: the call has moved on."""
    room = room_of(request)
    head = await open_call(room.services, who, session_id)
    await CallDesk(room).feedback(who, head, body)
    return Response(status_code=status.HTTP_204_NO_CONTENT)


@router.post("/{session_id}/close")
async def close(
    request: Request, who: Who, session_id: SessionId, body: CallClose
) -> dict[str, Any]:
    """End the call. Again: it stays as it ended."""
    room = room_of(request)
    head = await open_call(room.services, who, session_id)
    return await _view(room, await CallDesk(room).close(who, head, body.reason))


@router.post("/{session_id}/token", status_code=status.HTTP_201_CREATED)
async def token(request: Request, who: Who, session_id: SessionId) -> PanelToken:
    """A token for the panel in the agent's browser, where no API key belongs."""
    room = room_of(request)
    who.may_speak()
    head = await open_call(room.services, who, session_id)
    minutes = room.services.settings.panel_token_minutes
    made, expires_at = signer_of(room.services).issue_panel(head.conversation_id, minutes)
    return PanelToken(token=made, expires_at=int(expires_at * 1000))


async def _view(room: Room, head: Head) -> dict[str, Any]:
    services, name = room.services, head.conversation_id
    catchup = await services.log.catch_up(name, None, None)
    partials = await services.log.partials(name, services.settings.call_partial_seconds)
    return call_view(catchup, partials, await CallDesk(room).board.get(name))
