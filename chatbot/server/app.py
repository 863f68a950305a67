"""The server's application. It holds no state but open sockets: run as many as needed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from chatbot import __version__
from chatbot.server import chat_socket, desk_socket, health, metrics, visitors
from chatbot.server.admin import admin_router
from chatbot.server.admin.counting import SharedCount
from chatbot.server.calls import sessions, stream
from chatbot.server.chatwoot import webhook
from chatbot.server.completions import chat, models
from chatbot.server.errors import ErrorAnswer, install_error_handlers
from chatbot.server.limits import SocketLimits
from chatbot.server.middleware import BodyLimit, RequestContext
from chatbot.server.pages import pages_router
from chatbot.server.state import Room
from chatbot.services import Services


def create_app(
    services: Services, demo_page: Path | None = None, limits: SocketLimits | None = None
) -> FastAPI:
    """The FastAPI application over opened stores, which stay the caller's to close.

    Args:
        demo_page: an HTML file to serve under ``/demo/``; ``{{FRONTDESK_URL}}`` in it becomes
            this server's address.
        limits: times of the sockets; tests shorten them.
    """
    room = Room(services, limits or SocketLimits())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await room.start()
        try:
            yield
        finally:
            await room.stop()

    app = FastAPI(
        title="Frontdesk",
        version=__version__,
        lifespan=lifespan,
        responses={"default": {"description": "An error", "model": ErrorAnswer}},
    )
    app.state.services = services
    app.state.training_count = SharedCount()
    app.state.room = room
    install_error_handlers(app, room.metrics.limited)
    for router in (
        health.router,
        metrics.router,
        visitors.router,
        chat_socket.router,
        desk_socket.router,
        chat.router,
        models.router,
        sessions.router,
        stream.router,
        webhook.router,
        admin_router(),
        pages_router(demo_page),
    ):
        app.include_router(router)
    app.add_middleware(BodyLimit, most=services.settings.max_body_bytes, metrics=room.metrics)
    app.add_middleware(RequestContext, metrics=room.metrics)
    return app
