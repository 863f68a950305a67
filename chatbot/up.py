"""``frontdesk up`` and ``frontdesk demo``: every process of the product on one machine."""

import asyncio
import fcntl
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from chatbot.bootstrap import make_data_dir
from chatbot.embedded_store import embedded_url
from chatbot.errors import Conflict, FrontdeskError
from chatbot.settings import Settings
from chatbot.supervisor import Program, Supervisor
from chatbot.terminal import print_facts


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. ``demo_page`` is served under /demo."""

    settings: Settings
    console: bool = True
    trainer: bool = True
    demo_page: Path | None = None

    @property
    def server_url(self) -> str:
        return (
            self.settings.public_url
            or f"http://{_reachable(self.settings.host)}:{self.settings.port}"
        )

    @property
    def console_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.console_port}"


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host


def programs(plan: Plan) -> list[Program]:
    """The processes in starting order; they are stopped in the reverse one."""
    settings = plan.settings
    environment = {
        "FRONTDESK_DATA_DIR": str(settings.data_dir.absolute()),
        "FRONTDESK_HOST": settings.host,
        "FRONTDESK_PORT": str(settings.port),
        "FRONTDESK_CONSOLE_PORT": str(settings.console_port),
        "FRONTDESK_TRAIN_DATA": settings.train_data,
        "FRONTDESK_TRAIN_EVAL_DATA": settings.train_eval_data,
    }
    logs = settings.data_dir / "logs"

    def program(name: str, *arguments: str, **rest: Any) -> Program:
        variables = environment | rest.pop("environment", {})
        log_file = logs / f"{name}.log"
        return Program(name, arguments or (name,), log_file, environment=variables, **rest)

    async def store_ready() -> bool:
        return await asyncio.to_thread(embedded_url, settings.data_dir) is not None

    async def server_ready() -> bool:
        return await _answers(f"http://{_reachable(settings.host)}:{settings.port}/healthz")

    page = ("--demo-page", str(plan.demo_page.absolute())) if plan.demo_page else ()
    wanted = [] if settings.redis_url else [program("store", ready=store_ready)]
    wanted.append(program("server", "server", *page, ready=server_ready))
    wanted.append(program("worker"))
    if plan.trainer:
        # threads that spin while they wait would take the worker's processor time
        wanted.append(program("trainer", environment={"OMP_WAIT_POLICY": "PASSIVE"}))
    if plan.console:
        wanted.append(program("console"))
    return wanted


async def _answers(url: str) -> bool:
    async with httpx.AsyncClient(timeout=2) as client:
        try:
            return (await client.get(url)).is_success
        except httpx.HTTPError:
            return False


@asynccontextmanager
async def only_one(data_dir: Path) -> AsyncIterator[None]:
    """Hold the data directory for this process.

    Raises:
        Conflict: another `frontdesk up` holds it.
    """
    make_data_dir(data_dir)
    with (data_dir / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict(
                f"another `frontdesk up` uses {data_dir}: stop it, or choose another --data-dir"
            ) from None
        yield


@asynccontextmanager
async def running(plan: Plan, out: Console) -> AsyncIterator[asyncio.Event]:
    """Everything started and reachable; yields the event that Ctrl-C or SIGTERM sets.

    Raises:
        Conflict: the data directory is in use.
        FrontdeskError: a process did not start; names its log file.
    """
    for warning in missing_files(plan.settings):
        out.print(warning, style="yellow", markup=False, soft_wrap=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stop.set)
    async with only_one(plan.settings.data_dir):
        _require_free(plan.settings.host, plan.settings.port, "--port")
        if plan.console:
            _require_free("127.0.0.1", plan.settings.console_port, "--console-port")
        supervisor = Supervisor(programs(plan))
        starting = asyncio.create_task(supervisor.start())
        stopped = asyncio.create_task(stop.wait())
        try:
            with out.status("starting ..."):
                await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
            yield stop
        except RuntimeError as error:
            raise FrontdeskError(str(error)) from error
        finally:
            starting.cancel()
            stopped.cancel()
            await asyncio.gather(starting, stopped, return_exceptions=True)
            with out.status("stopping ..."):
                await supervisor.stop()
            out.print(f"stopped; everything is kept in {plan.settings.data_dir}", soft_wrap=True)


def missing_files(settings: Settings) -> list[str]:
    """Warnings: better now than in hours, when somebody starts a run in the console."""
    named = {
        "FRONTDESK_TRAIN_DATA": settings.train_data,
        "FRONTDESK_TRAIN_EVAL_DATA": settings.train_eval_data,
    }
    return [
        f"{setting}: there is no file {Path(name).absolute()}; training runs from the console "
        "will fail until there is."
        for setting, name in named.items()
        if name and not Path(name).is_file()
    ]


def _require_free(host: str, port: int, option: str) -> None:
    """Raise Conflict when something listens there: better now than in a child's log."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Conflict(
                f"port {port} is taken ({error.strerror}): choose another {option}"
            ) from None


def print_addresses(plan: Plan, out: Console) -> None:
    """What is where, for the terminal."""
    url, data_dir = plan.server_url, plan.settings.data_dir
    facts = [("agent desk", f"{url}/desk  (waiting and running chats)")]
    if plan.demo_page:
        facts.insert(0, ("shop page", f"{url}/demo  (the widget, as a visitor sees it)"))
    if plan.console:
        facts.append(("console", f"{plan.console_url}  (review, retrain, promote)"))
    facts.append(("login", f"admin  (its password is in {data_dir / 'admin-password'})"))
    facts.append(("API token", str(data_dir / "admin-token")))
    facts.append(("logs", str(data_dir / "logs")))
    print_facts(out, facts)


async def up(plan: Plan, out: Console) -> None:
    """Run until Ctrl-C."""
    async with running(plan, out) as stop:
        if not stop.is_set():
            print_addresses(plan, out)
            out.print("Ctrl-C stops everything.")
        await stop.wait()
