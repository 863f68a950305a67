"""Which runtime writes the replies."""

from collections.abc import Callable

import structlog

from chatbot.engine.interface import Engine
from chatbot.errors import SettingsError
from chatbot.settings import Settings

log = structlog.get_logger(__name__)


def _torch(settings: Settings) -> Engine:
    from chatbot.base_models import load_base
    from chatbot.engine.torch.engine import TorchEngine

    return TorchEngine(settings, load_base)


FACTORIES: dict[str, Callable[[Settings], Engine]] = {"torch": _torch}


def create_engine(settings: Settings) -> Engine:
    """The engine that the settings name, not started. ``auto`` logs what it took and why.

    Raises:
        SettingsError: there is no such runtime.
    """
    name = settings.engine
    if name == "auto":
        name = "torch"
        log.info("engine chosen", engine=name, reason="the only runtime in this build")
    if name not in FACTORIES:
        raise SettingsError(
            f"FRONTDESK_ENGINE={name}: no such runtime; there are auto, {', '.join(FACTORIES)}"
        )
    return FACTORIES[name](settings)
