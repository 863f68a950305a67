"""Memory that was freed in the middle of the heap."""

import ctypes
import sys
from pathlib import Path

import pytest

from chatbot.engine.torch.device import release_memory

PAGE = 4096
PIECE = 64 * 1024  # below what the C library asks the system for one by one
COUNT = 2000


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is asked to")
def test_freed_memory_is_given_back() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    before = resident()
    pieces = [libc.malloc(PIECE) for _ in range(COUNT)]
    for piece in pieces:
        ctypes.memset(piece, 1, PIECE)
    for piece in pieces[:-1]:  # the last one keeps the end of the heap
        libc.free(piece)
    assert resident() - before > COUNT * PIECE // 2
    release_memory()
    assert resident() - before < COUNT * PIECE // 10
    libc.free(pieces[-1])
