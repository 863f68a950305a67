"""``POST /v1/visitors``: who a browser is, before it opens a socket."""

import time
from collections.abc import Mapping

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from chatbot.errors import NotAuthenticated
from chatbot.record.tables import Site
from chatbot.server.auth import (
    TokenSigner,
    VisitorClaims,
    check_issuing,
    new_visitor,
    read_identity,
    signer_of,
)
from chatbot.server.limits import counted_address
from chatbot.server.site_settings import WidgetSettings, opening
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
    """What the chat needs to know of its site. ``open``, ``opens_at`` (Unix ms): as people answer
    now."""

    title: str
    welcome: str
    quick_replies: list[str]
    link_hosts: list[str]
    consent: bool
    privacy_url: str
    offline_form: bool
    max_chars: int
    open: bool
    opens_at: int | None


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
    await room.visitor_rate.take(counted_address(address), "requests for a token from this address")
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
    facts: Mapping[str, str] = {}
    if body.identity is not None:
        subject, facts = read_identity(site, body.identity)
        visitor, known = signer.visitor_id(site.name, subject), True
    elif body.visitor_token is not None:
        claims = _earlier(signer, site.name, body.visitor_token)
        visitor, known, facts = claims.visitor, claims.known, claims.facts
        if known:  # only the site itself can vouch for longer
            hours = (claims.expires_at - time.time()) / 3600
    token, expires_at = signer.issue_visitor(site.name, visitor, hours, known=known, facts=facts)
    return VisitorAnswer(
        token=token,
        expires_at=int(expires_at * 1000),
        visitor_id=visitor,
        site=_site_info(site, services.settings.max_message_chars),
    )


def _site_info(site: Site, max_chars: int) -> SiteInfo:
    widget = WidgetSettings.model_validate(site.widget)
    is_open, opens_at = opening(widget, time.time())
    return SiteInfo(
        title=site.title,
        welcome=site.welcome,
        max_chars=max_chars,
        open=is_open,
        opens_at=opens_at,
        **widget.model_dump(
            include=SiteInfo.model_fields.keys() & WidgetSettings.model_fields.keys()
        ),
    )


def _earlier(signer: TokenSigner, site: str, token: str) -> VisitorClaims:
    claims = signer.read_visitor(token)
    if claims.site != site:
        raise NotAuthenticated("this token is another site's: ask for one without it")
    return claims
