"""The tiny model, saved once; torch on one thread, which is fastest for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a tiny llama; what engines convert from it lies beside it."""
    from tests.chatbot.engine_openvino.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("openvino") / "tiny-llama")
