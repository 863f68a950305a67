"""When ``auto`` takes the openvino runtime, and what a missing package says. Needs no package:
whether it is installed is what is varied."""

from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from chatbot.engine import factory
from chatbot.errors import SettingsError
from chatbot.settings import Settings


@pytest.mark.parametrize(
    ("cuda", "installed", "given", "wanted"),
    [
        (False, True, {}, "openvino"),
        (False, True, {"device": "cpu"}, "openvino"),
        (True, True, {"device": "cpu"}, "openvino"),
        (True, True, {}, "torch"),
        (False, True, {"device": "cuda:0"}, "torch"),
        (False, True, {"dtype": "float32"}, "torch"),
        (False, False, {}, "torch"),
    ],
)
def test_auto_goes_by_the_hardware_and_says_why(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, installed: bool, given: dict[str, Any], wanted: str
) -> None:
    made = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(factory, "_openvino_installed", lambda: installed)
    for name in factory.FACTORIES:
        monkeypatch.setitem(factory.FACTORIES, name, lambda _, name=name: made.append(name))
    with capture_logs() as lines:
        factory.create_engine(Settings(**given))
    assert made == [wanted]
    assert lines[0]["engine"] == wanted
    assert lines[0]["reason"]


def test_a_runtime_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory, "_openvino_installed", lambda: False)
    with pytest.raises(SettingsError, match=r"pip install 'frontdesk\[openvino\]'"):
        factory.create_engine(Settings(engine="openvino"))
