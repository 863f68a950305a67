"""The record's time."""

import time


def now_ms() -> int:
    """Unix time in milliseconds (UTC)."""
    return time.time_ns() // 1_000_000
