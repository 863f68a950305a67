"""Which runtime writes the replies."""

import importlib.util
from collections.abc import Callable

import structlog

from chatbot.engine.interface import Engine
from chatbot.errors import SettingsError
from chatbot.settings import Settings

log = structlog.get_logger(__name__)


def _torch(settings: Settings) -> Engine:
    from chatbot.base_models import base_tokenizer, load_model
    from chatbot.engine.torch.engine import TorchEngine

    return TorchEngine(settings, load_model, base_tokenizer)


def _openvino(settings: Settings) -> Engine:
    if not _openvino_installed():
        raise SettingsError(
            "FRONTDESK_ENGINE=openvino: the package openvino is not installed; run "
            "`pip install 'frontdesk[openvino]'`, or set FRONTDESK_ENGINE=torch"
        )
    from chatbot.engine.openvino.engine import OpenVinoEngine

    return OpenVinoEngine(settings)


def _remote(settings: Settings) -> Engine:
    from chatbot.engine.remote.engine import RemoteEngine

    return RemoteEngine(settings)


FACTORIES: dict[str, Callable[[Settings], Engine]] = {
    "torch": _torch,
    "openvino": _openvino,
    "remote": _remote,
}


def _openvino_installed() -> bool:
    return importlib.util.find_spec("openvino") is not None


def _choose(settings: Settings) -> tuple[str, str]:
    """(runtime, why) for ``auto``."""
    if settings.remote_url:
        return "remote", "FRONTDESK_REMOTE_URL is set"

    import torch

    if settings.device not in ("auto", "cpu"):
        return "torch", f"FRONTDESK_DEVICE={settings.device}"
    if settings.device == "auto" and torch.cuda.is_available():
        return "torch", "there is a CUDA device"
    if settings.dtype == "float32":
        return "torch", "FRONTDESK_DTYPE=float32 asks for weights that are not rounded"
    if _openvino_installed():
        return "openvino", "no CUDA device is used, and openvino is installed"
    return "torch", "openvino, the faster runtime on CPUs, is not installed (frontdesk[openvino])"


def create_engine(settings: Settings) -> Engine:
    """The engine that the settings name, not started. ``auto`` logs what it took and why.

    Raises:
        SettingsError: there is no such runtime.
    """
    name: str = settings.engine
    if name == "auto":
        name, reason = _choose(settings)
        log.info("engine chosen", engine=name, reason=reason)
    if name not in FACTORIES:
        raise SettingsError(
            f"FRONTDESK_ENGINE={name}: no such runtime; there are auto, {', '.join(FACTORIES)}"
        )
    return FACTORIES[name](settings)
