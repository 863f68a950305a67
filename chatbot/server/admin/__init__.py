"""The admin API, ``/v1/admin``: one module for each topic. docs/architecture.md has the table."""

from fastapi import APIRouter
from fastapi.responses import RedirectResponse

from chatbot.server.admin import (
    audit,
    conversations,
    exports,
    keys,
    login,
    overview,
    people,
    playground,
    reviews,
    runs,
    sites,
    staff,
    training,
    versions,
)

__all__ = ["admin_router"]
TOPICS = (
    login,
    overview,
    conversations,
    reviews,
    training,
    runs,
    versions,
    playground,
    sites,
    staff,
    keys,
    people,
    exports,
    audit,
)


def admin_router() -> APIRouter:
    """Every route of the admin API. The app needs ``state.services`` and
    :func:`chatbot.server.errors.install_error_handlers`; the playground ``state.room`` too."""
    router = APIRouter(prefix="/v1/admin")
    router.add_api_route("/docs", _docs, include_in_schema=False)
    for topic in TOPICS:
        router.include_router(topic.router)
    return router


def _docs() -> RedirectResponse:
    return RedirectResponse("/docs")
