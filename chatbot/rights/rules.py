"""Retention as arithmetic, and text that a spreadsheet may open. Pure: no I/O, no clock."""

from dataclasses import dataclass

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

# Characters that make a spreadsheet take a cell for a formula (OWASP, "CSV Injection")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


@dataclass(frozen=True, slots=True)
class Retention:
    """How long conversations of a site are kept. ``idle_close_hours`` and ``record_days`` 0: never
    closed, never deleted. ``log_days``: a closed, recorded conversation leaves Redis after so
    long; it is still in the record."""

    idle_close_hours: int
    log_days: int
    record_days: int

    def idle_before(self, now: int) -> int | None:
        """A conversation whose last activity is not after this (Unix ms) is idle."""
        return now - self.idle_close_hours * HOUR_MS if self.idle_close_hours else None

    def record_before(self, now: int) -> int | None:
        """A conversation whose last activity is not after this (Unix ms) is deleted."""
        return now - self.record_days * DAY_MS if self.record_days else None


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a site says itself; None: as the installation."""

    idle_close_hours: int | None = None
    log_days: int | None = None
    record_days: int | None = None


def effective(own: Overrides, default: Retention) -> Retention:
    """The site's own numbers where it has some."""

    def pick(mine: int | None, theirs: int) -> int:
        return theirs if mine is None else mine

    return Retention(
        idle_close_hours=pick(own.idle_close_hours, default.idle_close_hours),
        log_days=pick(own.log_days, default.log_days),
        record_days=pick(own.record_days, default.record_days),
    )


def safe_cell(value: object) -> str:
    """A CSV cell that no spreadsheet takes for a formula: such text gets an apostrophe before
    it. Numbers stay as they are."""
    if value is None:
        return ""
    if isinstance(value, (int, float)):
        return str(value)
    text = str(value)
    return f"'{text}" if text.lstrip(" \u00a0").startswith(_FORMULA) else text
