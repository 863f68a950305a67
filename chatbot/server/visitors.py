"""``POST /v1/visitors``: who a browser is, before it opens a socket."""

import time

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from chatbot.errors import NotAuthenticated
from chatbot.server.auth import (
    TokenSigner,
    VisitorClaims,
    check_issuing,
    new_visitor,
    read_identity,
    signer_of,
)
from chatbot.server.state import Room

router = APIRouter(tags=["visitors"])


class VisitorRequest(BaseModel):
    """``visitor_token``: an earlier one, to stay the same visitor. ``identity``: a JWT signed by
    the site's own back end, to be a known customer."""

    model_config = ConfigDict(extra="forbid")
    site: str = Field(min_length=1, max_length=64)
    visitor_token: str | None = Field(None, max_length=4096)
    identity: str | None = Field(None, max_length=4096)


class SiteInfo(BaseModel):
    title: str
    welcome: str


class VisitorAnswer(BaseModel):
    """``expires_at``: Unix milliseconds."""

    token: str
    expires_at: int
    visitor_id: str
    site: SiteInfo


@router.post("/v1/visitors")
async def visitors(request: Request, body: VisitorRequest) -> VisitorAnswer:
    """Give a browser its visitor's token. Errors: 401 for a token or identity that is not valid
    (ask again without it to be a new visitor), 403 for a page that may not use the site, 429."""
    room: Room = request.app.state.room
    address = request.client.host if request.client else ""
    await room.visitor_rate.take(address, "requests for a token from this address")
    return await run_in_threadpool(_answer, room, request, address, body)


def _answer(room: Room, request: Request, address: str, body: VisitorRequest) -> VisitorAnswer:
    services = room.services
    site = check_issuing(
        services,
        body.site,
        origin=request.headers.get("origin"),
        host=request.headers.get("host", ""),
        address=address,
        bearer=request.headers.get("authorization", "").removeprefix("Bearer "),
    )
    signer = signer_of(services)
    hours = services.settings.visitor_token_hours
    visitor, known = new_visitor(), False
    if body.identity is not None:
        visitor, known = signer.visitor_id(site.name, read_identity(site, body.identity)), True
    elif body.visitor_token is not None:
        claims = _earlier(signer, site.name, body.visitor_token)
        visitor, known = claims.visitor, claims.known
        if known:  # only the site itself can vouch for longer
            hours = (claims.expires_at - time.time()) / 3600
    token, expires_at = signer.issue_visitor(site.name, visitor, hours, known=known)
    return VisitorAnswer(
        token=token,
        expires_at=int(expires_at * 1000),
        visitor_id=visitor,
        site=SiteInfo(title=site.title, welcome=site.welcome),
    )


def _earlier(signer: TokenSigner, site: str, token: str) -> VisitorClaims:
    claims = signer.read_visitor(token)
    if claims.site != site:
        raise NotAuthenticated("this token is another site's: ask for one without it")
    return claims
