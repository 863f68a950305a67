"""Load: many sockets on one server process, and ten minutes of everything at once."""

import asyncio
import json
import resource
import time
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from bench.faults.place import Place
from bench.faults.scenarios.common import Outcome, Setting, opened
from bench.product import lend_base_model
from chatbot.conversation.events import ConversationId, Lease
from chatbot.services import Services

IDLE, ACTIVE = 2000, 200
DELTA_SECONDS = 0.5  # between two pieces of each active reply
PIECES = 20
MINUTES, KILL_SECONDS = 10.0, 10.0


async def mixed(setting: Setting) -> Outcome:
    """Ten minutes of short replies to many visitors; sockets are cut all the time, and every ten
    seconds a process or the store is killed."""
    loop = asyncio.get_running_loop()
    minutes, every = MINUTES * setting.scale, KILL_SECONDS
    async with opened(setting, visitors=40, words=5, seconds=0.02) as running:
        until = loop.time() + 60 * minutes
        names = [*sorted(running.place.processes), "store"]
        async with running.talking():
            number = 0
            while (left := until - loop.time()) > 0:
                running.setting.progress(1 - left / (60 * minutes))
                due = min(loop.time() + every, until)
                while loop.time() < due:
                    await running.pause(0.1, 0.5)
                    setting.rng.choice(running.visitors).proxy.cut()
                    running.outcome.faults["socket clean"] += 1
                name = names[number % len(names)]
                number += 1
                await (running.kill_store() if name == "store" else running.kill(name))
    return running.outcome


async def real_model(setting: Setting) -> Outcome:
    """The real model writes; its worker is killed in the middle of replies."""
    lend_base_model(setting.folder / "data")
    more = {"FRONTDESK_REPLY_MAX_TOKENS": "48", "FRONTDESK_LEASE_SECONDS": "5"}
    async with opened(setting, visitors=3, real_model=True, settings=more) as running:

        async def one_round(number: int) -> None:
            asking = asyncio.create_task(running.everybody_asks("How long does delivery take?"))
            await running.pause(1.0, 3.0)
            await running.kill(f"worker-{number % 2 + 1}")
            await asking

        await running.rounds(setting.times(1), one_round)
    return running.outcome


async def many_sockets(setting: Setting) -> Outcome:
    """2,000 idle and 200 active sockets on one server process. This process takes the worker's
    part, so that one clock says when a piece was written and when it came."""
    idle, active = round(IDLE * setting.scale), round(ACTIVE * setting.scale)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    outcome = Outcome()
    began = time.monotonic()
    place = Place(
        setting.folder, setting.new_store(), setting.nursery, servers=1, workers=0, archiver=False
    )
    async with place.running(), place.services() as services:
        pid = place.processes["server-1"].pid
        before = _resident(pid)
        sockets: list[tuple[ClientConnection, ConversationId]] = []
        try:
            for number in range(idle + active):
                sockets.append(await _open(place, f"v-{number}"))
                setting.progress(0.8 * number / (idle + active))
            after = _resident(pid)
            late = await _fan_out(services, sockets[:active])
        finally:
            await asyncio.gather(*(socket.close() for socket, _ in sockets))
    late.sort()
    outcome.more = {
        "sockets_idle": idle,
        "sockets_active": active,
        "pieces": len(late),
        "fan_out_ms_p50": round(1000 * late[len(late) // 2], 1),
        "fan_out_ms_p99": round(1000 * late[int(len(late) * 0.99)], 1),
        "server_mib_before": round(before / 2**20, 1),
        "server_kib_per_socket": round((after - before) / 1024 / (idle + active), 1),
    }
    outcome.seconds = time.monotonic() - began
    return outcome


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


async def _open(place: Place, visitor: str) -> tuple[ClientConnection, ConversationId]:
    socket = await connect(
        f"ws://127.0.0.1:{place.ports[0]}/v1/chat", compression=None, ping_interval=None
    )
    await socket.send(json.dumps({"type": "hello", "token": place.token(visitor)}))
    welcome: dict[str, Any] = json.loads(await socket.recv())
    return socket, ConversationId(welcome["conversation_id"])


async def _fan_out(
    services: Services, sockets: list[tuple[ClientConnection, ConversationId]]
) -> list[float]:
    """Seconds from writing a piece to its arrival, for each piece of each reply."""
    for number, (_, name) in enumerate(sockets):
        await services.log.append_message(
            name, role="visitor", text="hello", client_message_id=f"m-{number}", author="v"
        )
    written: dict[str, float] = {}
    late: list[float] = []

    async def read(socket: ClientConnection) -> None:
        while True:
            frame = json.loads(await socket.recv())
            if frame["type"] == "reply.delta":
                for number in frame["text"].split():
                    late.append(time.monotonic() - written[f"{frame['reply_id']}:{number}"])
            elif frame["type"] == "reply.completed":
                return

    async def write(lease: Lease, wait: float) -> None:
        await asyncio.sleep(wait)  # not all at the same moment
        await services.log.start_reply(lease, "v-bench")
        text = ""
        for number in range(PIECES):
            piece = f"{number} "
            written[f"{lease.reply_id}:{number}"] = time.monotonic()
            await services.log.append_delta(lease, len(text), piece)
            text += piece
            await asyncio.sleep(DELTA_SECONDS)
        await services.log.complete_reply(
            lease,
            text=text,
            finish_reason="end",
            version="v-bench",
            usage={},
            confidence=None,
            seconds=1.0,
        )

    readers = [asyncio.create_task(read(socket)) for socket, _ in sockets]
    writers = []
    for number in range(len(sockets)):
        lease = await services.log.take_job("bench", 5.0)
        assert lease is not None
        wait = DELTA_SECONDS * number / len(sockets)
        writers.append(asyncio.create_task(write(lease, wait)))
    await asyncio.gather(*writers)
    async with asyncio.timeout(60):
        await asyncio.gather(*readers)
    return late
