"""The long-running processes: each opens what it needs, runs until SIGINT or SIGTERM, and closes
in order. ``up`` runs them side by side; in production each is a container of its own."""

import asyncio
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from chatbot.bootstrap import open_services, resolve_queue_url
from chatbot.crew import all_or_none
from chatbot.embedded_store import run_embedded_store
from chatbot.engine.interface import Engine
from chatbot.settings import Settings

log = structlog.get_logger()
TRAINER_NICENESS = 10


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop.set)
    return stop


def run_store(settings: Settings) -> None:
    """The embedded Valkey."""
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    run_embedded_store(settings.data_dir, stop)


async def run_server(settings: Settings, demo_page: Path | None = None) -> None:
    """Sockets and APIs. uvicorn handles the signals: it stops listening, closes the sockets with
    1001 and returns."""
    from chatbot.server.app import create_app
    from chatbot.server.run import make_server
    from chatbot.server.sites import ensure_demo_site
    from chatbot.server.staff import ensure_admin

    async with open_services(settings) as services:
        await asyncio.to_thread(ensure_admin, services.database, settings.data_dir)
        await asyncio.to_thread(ensure_demo_site, services.database)
        await make_server(create_app(services, demo_page=demo_page), settings).serve()


async def run_worker(
    settings: Settings, make_engine: Callable[[Settings], Engine] | None = None
) -> None:
    """The engine, reply jobs, archiver and keeper. ``make_engine`` stands in for the runtime that
    the settings name: a program that runs the product's worker with an engine of its own."""
    from chatbot.conversation.archive import Archiver
    from chatbot.engine.factory import create_engine
    from chatbot.rights.keeper import Keeper
    from chatbot.worker.worker import Worker

    stop = _stop_on_signals()
    async with open_services(settings) as services:
        engine = (make_engine or create_engine)(settings)
        await engine.start()
        # what was loaded stays: a full collection that looks at all of it again and again would
        # stop running replies for up to a quarter of a second
        gc.collect()
        gc.freeze()
        log.info("worker.ready", base_model=settings.base_model)
        try:
            registry = CollectorRegistry()  # one /metrics for both
            await all_or_none(
                Archiver(services.log, services.archive, registry).run(stop),
                Keeper(services, registry).run(stop),
                Worker(services, engine, _worker_name(), registry).run(stop),
            )
        finally:
            await engine.close()


async def run_archiver(settings: Settings) -> None:
    """Only the archiver: for installations whose workers come and go. Several do no harm."""
    from chatbot.conversation.archive import Archiver

    stop = _stop_on_signals()
    async with open_services(settings) as services:
        log.info("archiver.ready")
        await Archiver(services.log, services.archive).run(stop)


def run_trainer(settings: Settings) -> None:
    """Training runs, one at a time; chats on the same machine come first."""
    from chatbot.trainer import run_trainer as work

    os.nice(TRAINER_NICENESS)
    work(settings, resolve_queue_url(settings))


def _worker_name() -> str:
    return f"{socket.gethostname()}-{threading.get_native_id()}"
