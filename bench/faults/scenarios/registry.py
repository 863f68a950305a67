"""The scenarios by name, and the stores that each runs on."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bench.faults.scenarios import load, processes, sockets, stores
from bench.faults.scenarios.common import Outcome, Setting, StoreKind

ANY: tuple[StoreKind, ...] = ("valkey", "redis", "cluster")
SINGLE: tuple[StoreKind, ...] = ("valkey", "redis")
VALKEY: tuple[StoreKind, ...] = ("valkey",)


@dataclass(frozen=True, slots=True)
class Scenario:
    """``times``: how much larger than in the tests a full soak runs it."""

    run: Callable[[Setting], Awaitable[Outcome]]
    on: tuple[StoreKind, ...]
    times: float
    quick: float = 1.0  # the same for a quick soak


SCENARIOS: dict[str, Scenario] = {
    "cut-sockets": Scenario(sockets.cut_sockets, ANY, times=4),
    "at-once": Scenario(sockets.at_once, ANY, times=10),
    "kills": Scenario(processes.kills, ANY, times=4),
    "take-over": Scenario(processes.take_over, ANY, times=3),
    "rolling-restart": Scenario(processes.rolling_restart, ANY, times=3),
    "stopped-worker": Scenario(processes.stopped_worker, ANY, times=3),
    "store-kills-everysec": Scenario(processes.store_kills, ANY, times=8),
    "store-kills-always": Scenario(processes.store_kills_always, SINGLE, times=8),
    "store-forgotten": Scenario(stores.forgotten, SINGLE, times=4),
    "store-full": Scenario(stores.full, SINGLE, times=4),
    "record-away": Scenario(stores.record_away, SINGLE, times=3),
    "power-cuts": Scenario(stores.power_cuts, VALKEY, times=6),
    "power-cuts-unguarded": Scenario(stores.power_cuts_unguarded, VALKEY, times=6),
    "real-model": Scenario(load.real_model, VALKEY, times=4),
    "many-sockets": Scenario(load.many_sockets, VALKEY, times=1, quick=0.1),
    "mixed": Scenario(load.mixed, ANY, times=1, quick=0.05),
}
