"""``/v1/models``: the versions that a worker can load, and ``live``, whichever that is."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from chatbot.errors import NotFound
from chatbot.server.auth import services_of
from chatbot.server.completions.access import Caller
from chatbot.server.completions.errors import NoSuchModel, OpenAiRoute
from chatbot.services import Services
from chatbot.versions import VersionInfo

router = APIRouter(prefix="/v1/models", tags=["openai"], route_class=OpenAiRoute)
ALIAS = "live"
OWNER = "frontdesk"


def resolve(services: Services, name: str) -> VersionInfo:
    """The version that a request names. Raises NoSuchModel, StoreUnavailable."""
    versions = services.versions
    try:
        version = versions.live() if name == ALIAS else versions.get(name)
    except NotFound:
        raise NoSuchModel(name) from None
    if version.base_model != services.settings.base_model:
        raise NoSuchModel(name)  # of another base model: no worker here could load it
    return version


@router.get("")
async def list_models(_: Caller, request: Request) -> dict[str, Any]:
    """``live`` first, then every version, the newest first."""
    services = services_of(request)
    versions = await asyncio.to_thread(services.versions.list)
    loadable = [v for v in versions if v.base_model == services.settings.base_model]
    alias = [_model(v, ALIAS) for v in loadable if v.state == "live"]
    return {"object": "list", "data": alias + [_model(v, v.id) for v in loadable]}


@router.get("/{name}")
async def model(_: Caller, request: Request, name: str) -> dict[str, Any]:
    """One of them."""
    return _model(await asyncio.to_thread(resolve, services_of(request), name), name)


def _model(version: VersionInfo, name: str) -> dict[str, Any]:
    """``root`` is the version, also of the alias; ``parent`` its base model."""
    return {
        "id": name,
        "object": "model",
        "created": version.created_at // 1000,
        "owned_by": OWNER,
        "root": version.id,
        "parent": version.base_model,
        "state": version.state,
    }
