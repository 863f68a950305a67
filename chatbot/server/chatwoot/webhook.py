"""``POST /v1/chatwoot/{site}``: the webhooks of Chatwoot's agent bot."""

import json
import time
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Path, Request
from pydantic import BaseModel

from chatbot.conversation.store import call_store
from chatbot.errors import NotFound, RequestRefused
from chatbot.server.auth import services_of
from chatbot.server.chatwoot.config import chatwoot_sites
from chatbot.server.chatwoot.inbound import Inbound
from chatbot.server.chatwoot.payload import check_signature

log = structlog.get_logger()
router = APIRouter(tags=["chatwoot"])
SEEN = "fd:chatwoot:seen:{site}:{delivery}"
SEEN_SECONDS = 86_400


class Outcome(BaseModel):
    """``taken``, ``duplicate`` or ``ignored``."""

    outcome: str


@router.post("/v1/chatwoot/{site}")
async def webhook(request: Request, site: Annotated[str, Path(max_length=64)]) -> Outcome:
    """Take an event of Chatwoot. 401: not signed with the site's secret, or not now. Chatwoot sends
    one again when it gets no answer: a delivery that was taken is not taken twice."""
    services = services_of(request)
    config = chatwoot_sites(services.settings).get(site)
    if config is None:
        raise NotFound("there is no Chatwoot for this site: FRONTDESK_CHATWOOT says which have one")
    body = await request.body()
    headers = request.headers
    check_signature(
        config.secret,
        headers.get("x-chatwoot-signature", ""),
        headers.get("x-chatwoot-timestamp", ""),
        body,
        time.time(),
        services.settings.chatwoot_stale_seconds,
    )
    delivery = headers.get("x-chatwoot-delivery", "")[:64]
    seen = SEEN.format(site=site, delivery=delivery)
    if delivery and await call_store(lambda: services.redis.exists(seen)):
        return Outcome(outcome="duplicate")
    payload = _json(body)
    name = str(payload.get("event"))[:64]
    outcome = await Inbound(request.app.state.room, site, config).take(name, payload)
    log.info("chatwoot.webhook", site=site, webhook=name, outcome=outcome)
    if delivery:  # only now: one that broke off is taken when it comes again
        await call_store(lambda: services.redis.set(seen, 1, ex=SEEN_SECONDS))
    return Outcome(outcome=outcome)


def _json(body: bytes) -> dict[str, Any]:
    """Raises RequestRefused."""
    try:
        found = json.loads(body)
    except ValueError:
        raise RequestRefused("the body is not JSON") from None
    if not isinstance(found, dict):
        raise RequestRefused("the body must be a JSON object")
    return found
