"""Real processes are broken on purpose; afterwards every visitor's view, the log and the record
must tell the same story. ``make soak`` runs the same scenarios for longer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.faults.process import Nursery
from bench.faults.scenarios.common import Outcome, Setting, StoreKind
from bench.faults.scenarios.registry import SCENARIOS
from tests.conftest import redis_server

pytestmark = [pytest.mark.loop, pytest.mark.timeout(600)]

# Each scenario once, and each store under what differs most between them.
RUNS: list[tuple[str, StoreKind]] = [
    ("cut-sockets", "valkey"),
    ("at-once", "cluster"),
    ("kills", "cluster"),
    ("rolling-restart", "valkey"),
    ("stopped-worker", "valkey"),
    ("store-kills-everysec", "cluster"),
    ("store-kills-always", "redis"),
    ("store-forgotten", "valkey"),
    ("store-full", "redis"),
    ("record-away", "valkey"),
    ("power-cuts", "valkey"),
]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Where processes come from: the product's code is loaded once."""
    made = Nursery()
    yield made
    made.close()


@pytest.mark.parametrize(("name", "store"), RUNS, ids=[f"{name}-{store}" for name, store in RUNS])
async def test_nothing_is_lost_doubled_or_torn(
    name: str, store: StoreKind, nursery: Nursery, tmp_path: Path
) -> None:
    if store != "valkey":
        redis_server()
    outcome: Outcome = await SCENARIOS[name].run(Setting(tmp_path, nursery, store))
    assert outcome.faults.total() > 0
    assert outcome.found.acknowledged == outcome.found.messages > 0
    assert outcome.clean, outcome.as_dict()
    for name, seconds in outcome.more.get("delay_s", {}).items():
        assert seconds < outcome.more["delay_limit_s"], f"{name} kept a visitor waiting"
