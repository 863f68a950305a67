"""The worker with a model server beside it: one that breaks off, is away, and comes back."""

from pathlib import Path

import pytest

from chatbot.engine.remote.engine import RemoteEngine
from tests.chatbot.conversation.steps import ask, begin
from tests.chatbot.engine_contract.served import free_port
from tests.chatbot.engine_contract.talker import save_talker
from tests.chatbot.engine_remote.conftest import TEXT, model_server, remote_settings
from tests.chatbot.engine_remote.model_server import Fault
from tests.chatbot.worker.conftest import Place
from tests.chatbot.worker.test_worker import ended


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BACKOFF_SECONDS", "AWAY_SECONDS", "AWAY_RETRY"):
        monkeypatch.setattr(f"chatbot.engine.remote.engine.{name}", 0.05)


async def test_a_reply_waits_for_the_model_server_and_survives_its_faults(
    place: Place, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    engine = RemoteEngine(remote_settings(save_talker(tmp_path / "talker"), url))
    place.engine = engine  # type: ignore[assignment]
    await engine.start()
    try:
        cid = await begin(place.log)
        async with place.worker() as worker:
            await ask(place.log, cid, "Where is it?")
            async with model_server(faults=[Fault("cut", 5), Fault("garbage", 3)]).running(port):
                (reply,) = await ended(place, cid)
                place.version("v1")
                await ask(place.log, cid, "And now?")
                _, tuned = await ended(place, cid, 2)
            stats = worker.metrics.engine
    finally:
        await engine.close()
    assert reply.data["text"] == tuned.data["text"] == TEXT
    assert (reply.data["finish_reason"], tuned.data["version"]) == ("end", "v1")
    assert reply.data["confidence"] == pytest.approx(0.5)
    assert stats is not None
    assert stats.adapters == ("v1",)
