"""The weights of one version in the forms that peers take: merged into the base model as a Hugging
Face directory, as OpenVINO IR with int8 weights, as GGUF in Q8_0. Each is made once and kept."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.product import CACHE
from chatbot.base_models import BUILT_IN, base_directory, gguf_file, load_base, load_tokenizer
from chatbot.manifest import ADAPTER


class Weights:
    """``version``: a version's directory; None: the untuned base model."""

    def __init__(self, version: Path | None, work: Path) -> None:
        self.adapter = version / ADAPTER if version else None
        self.data_dir = CACHE  # where the base model is kept
        self.root = work / (f"{version.name}-{_digest(self.adapter)}" if version else BUILT_IN)

    def tokenizer(self) -> Any:
        return load_tokenizer(base_directory(BUILT_IN, self.data_dir))

    def merged(self) -> Path:
        """A Hugging Face directory in bfloat16."""
        return self._once("merged", self._merge)

    def openvino(self, python: str) -> Path:
        """OpenVINO IR, written by optimum-intel of the given interpreter."""
        source = self.merged()
        options = ["--task", "text-generation-with-past", "--weight-format", "int8"]
        command = [python, "-m", "optimum.commands.optimum_cli", "export", "openvino"]

        def export(target: Path) -> None:
            run([*command, "--model", str(source), *options, str(target)])

        return self._once("openvino-int8", export)

    def gguf(self) -> Path:
        """GGUF in Q8_0, with the tokenizer of the GGUF that the built-in base model comes from."""
        source = self.merged()

        def convert(target: Path) -> None:
            from bench.peers.gguf import write_q8

            target.mkdir()
            write_q8(source, gguf_file(), target / "model.gguf")

        return self._once("gguf", convert) / "model.gguf"

    def _once(self, name: str, make: Callable[[Path], None]) -> Path:
        target = self.root / name
        if not target.is_dir():
            self.root.mkdir(parents=True, exist_ok=True)
            draft = self.root / f".{name}"
            shutil.rmtree(draft, ignore_errors=True)
            make(draft)
            draft.rename(target)
        return target

    def _merge(self, target: Path) -> None:
        import torch

        source = base_directory(BUILT_IN, self.data_dir)
        model, tokenizer = load_base(BUILT_IN, self.data_dir, torch.float32)
        if self.adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(self.adapter)).merge_and_unload()
        model.to(torch.bfloat16).save_pretrained(target)
        tokenizer.save_pretrained(target)
        template = source / "chat_template.jinja"
        if template.exists() and not (target / template.name).exists():
            shutil.copy(template, target)


def _digest(adapter: Path | None) -> str:
    if adapter is None:
        return "base"
    return hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()[:10]


def run(command: list[str]) -> None:
    """Raises RuntimeError with the end of what the program said."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        raise RuntimeError(f"{' '.join(command[:5])} ... ended with {done.returncode}")
