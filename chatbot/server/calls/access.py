"""Who may use ``/v1/assist``: a site's API key, the API token, staff, and for one call a panel."""

import asyncio
import hmac
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from chatbot.conversation.events import ConversationId, Head
from chatbot.errors import NotAllowed, NotAuthenticated, NotFound
from chatbot.server.api_keys import PREFIX, find_key
from chatbot.server.auth import API_USER, read_staff, services_of, signer_of
from chatbot.server.channels import is_call, lives_elsewhere
from chatbot.services import Services

_bearer = HTTPBearer(
    auto_error=False, description="A key made with `frontdesk keys create NAME --site SITE`"
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``site``: the only one whose calls they may have; None: any. ``session``: the only
    call, of a panel, which may read it and say what became of drafts. ``agent``: a member of
    staff, who acts in their own name. Unix seconds."""

    actor: str
    site: str | None
    session: str | None = None
    agent: str | None = None
    expires_at: float | None = None

    def may_begin(self, site: str) -> None:
        """Raises NotAllowed."""
        if self.session is not None:
            raise NotAllowed("a panel's token begins no call")
        if self.site not in (None, site):
            raise NotAllowed(f"this key is for the calls of the site {self.site}, not of {site}")

    def may_speak(self) -> None:
        """Raises NotAllowed: fragments come from the telephony, which also ends the call."""
        if self.session is not None:
            raise NotAllowed("a panel's token may read its call and give feedback, nothing else")


async def find_caller(services: Services, token: str) -> Caller:
    """Whose token this is. It is looked up each time: a revoked key is out at once.

    Raises:
        NotAuthenticated: nobody's.
        NotAllowed: a key without a site.
    """
    if services.admin_token and hmac.compare_digest(token.encode(), services.admin_token.encode()):
        return Caller(API_USER, None)
    if token.startswith(PREFIX):
        row = await asyncio.to_thread(find_key, services.database, token)
        if row is None:
            raise NotAuthenticated("this API key is not known, or it was revoked")
        if not row.site:
            raise NotAllowed(
                "this API key is for no site: `frontdesk keys create NAME --site SITE` makes one"
            )
        return Caller(row.id, row.site)
    try:
        panel = signer_of(services).read_panel(token)
    except NotAuthenticated:
        staff = await asyncio.to_thread(read_staff, services, token)
        return Caller(staff.username, None, agent=staff.username, expires_at=staff.expires_at)
    return Caller("panel", None, session=panel.session, expires_at=panel.expires_at)


async def caller(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    if credentials is None:
        raise NotAuthenticated(
            "no API key: send `Authorization: Bearer KEY`. "
            "`frontdesk keys create NAME --site SITE` makes one"
        )
    return await find_caller(services_of(request), credentials.credentials)


Who = Annotated[Caller, Depends(caller)]


async def open_call(services: Services, who: Caller, session_id: str) -> Head:
    """The head of a call that ``who`` may have.

    Raises:
        NotFound: there is none, or it is not theirs: which of the two is not told.
    """
    head = None
    # what is in Chatwoot is for staff, who have the panel there
    theirs = is_call(session_id) or (who.agent is not None and lives_elsewhere(session_id))
    if theirs and who.session in (None, session_id):
        head = await services.log.head(ConversationId(session_id))
    # one without an event is about to begin
    if head is None or head.offset == 0 or who.site not in (None, head.site):
        raise NotFound("there is no such call of yours")
    return head
