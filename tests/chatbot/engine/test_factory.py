"""Which runtime is made, and with which device and number type."""

from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from chatbot.engine.factory import FACTORIES, create_engine
from chatbot.engine.torch.device import resolve_device, resolve_dtype
from chatbot.engine.torch.engine import TorchEngine
from chatbot.errors import SettingsError
from chatbot.settings import Settings


async def test_torch_makes_the_torch_engine() -> None:
    engine = create_engine(Settings(engine="torch"))
    assert isinstance(engine, TorchEngine)
    await engine.close()


async def test_auto_logs_what_it_took_and_why() -> None:
    with capture_logs() as lines:
        await create_engine(Settings(engine="auto")).close()
    assert lines[0]["engine"] in FACTORIES
    assert lines[0]["reason"]


async def test_auto_takes_a_model_server_when_there_is_an_address(monkeypatch: Any) -> None:
    made = []
    for name in FACTORIES:
        monkeypatch.setitem(FACTORIES, name, lambda _, name=name: made.append(name))
    with capture_logs() as lines:
        create_engine(Settings(remote_url="http://127.0.0.1:8000"))
        create_engine(Settings(remote_url="http://127.0.0.1:8000", engine="torch"))
    assert made == ["remote", "torch"]
    assert lines[0]["reason"] == "FRONTDESK_REMOTE_URL is set"


def test_remote_needs_an_address() -> None:
    with pytest.raises(SettingsError, match="set FRONTDESK_REMOTE_URL"):
        create_engine(Settings(engine="remote"))


def test_an_unknown_runtime_is_refused() -> None:
    settings = Settings().model_copy(update={"engine": "steam"})
    with pytest.raises(
        SettingsError, match=r"steam: no such runtime; there are auto, torch, openvino, remote"
    ):
        create_engine(settings)


def test_an_unusable_device_is_refused() -> None:
    with pytest.raises(SettingsError, match="FRONTDESK_DEVICE=toaster"):
        resolve_device("toaster")


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_f": True, "amx_bf16": False}, torch.float32),
    ],
)
def test_auto_is_bfloat16_only_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], wanted: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    dtype, reason = resolve_dtype("auto", torch.device("cpu"))
    assert dtype == wanted
    assert reason
    assert resolve_dtype("float32", torch.device("cpu"))[0] == torch.float32
