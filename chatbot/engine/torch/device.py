"""Which device and number type the torch runtime uses, and its threads and memory."""

import ctypes
import sys

import torch

from chatbot.errors import SettingsError


def resolve_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU.

    Raises:
        SettingsError: the name is no device, or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"FRONTDESK_DEVICE={name}: cannot be used ({error})") from error
    return device


def resolve_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """The number type of weights and cache, and why. ``auto``: bfloat16 where the device
    multiplies it natively (elsewhere it is slower than float32)."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name], "as set"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return (
            (torch.bfloat16, "the GPU has bfloat16")
            if native
            else (torch.float32, "the GPU has no bfloat16")
        )
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        for flag in ("amx_bf16", "avx512_bf16"):
            if found.get(flag):
                return torch.bfloat16, f"the CPU has {flag}"
    return torch.float32, f"no native bfloat16 found on {device.type}"


def use_threads(count: int) -> None:
    """Have operations of the calling thread, and of no other, use ``count`` OpenMP threads."""
    torch.set_num_threads(count)
    # a thread's first look at the number makes it the one that any thread set last; so look now
    torch.get_num_threads()


def release_memory() -> None:
    """Give the system what the C library (glibc; others keep less) has of freed memory. Loading a
    model leaves a gigabyte of it, and whatever is freed last would have to give it all back, a
    tenth of a second with Python's lock held."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
