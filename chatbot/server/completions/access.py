"""Who may use the OpenAI-compatible API: keys that an administrator made, and the API token."""

import asyncio
import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from chatbot.errors import NotAuthenticated
from chatbot.server.api_keys import find_key
from chatbot.server.auth import API_USER, services_of

_bearer = HTTPBearer(auto_error=False, description="A key made with `frontdesk keys create`")


async def caller(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> str:
    """The id of the key that asks. It is looked up each time: a revoked one is out at once.

    Raises:
        NotAuthenticated, StoreUnavailable
    """
    if credentials is None:
        raise NotAuthenticated(
            "no API key: send `Authorization: Bearer KEY`. `frontdesk keys create` makes one"
        )
    services, key = services_of(request), credentials.credentials
    if services.admin_token and hmac.compare_digest(key.encode(), services.admin_token.encode()):
        return API_USER
    row = await asyncio.to_thread(find_key, services.database, key)
    if row is None:
        raise NotAuthenticated("this API key is not known, or it was revoked")
    return row.id


Caller = Annotated[str, Depends(caller)]
