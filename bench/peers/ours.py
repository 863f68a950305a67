"""Frontdesk itself: `frontdesk up` in a data directory of its own, through its whole API."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.peers import Endpoint
from bench.product import free_port, running_product


@asynccontextmanager
async def ours(
    name: str, version: Path | None, settings: dict[str, str]
) -> AsyncIterator[Endpoint]:
    """Started with ``settings`` (FRONTDESK_ variables) and, where ``version`` names a version's
    directory, with that version live."""
    with tempfile.TemporaryDirectory(prefix="frontdesk-bench-") as folder:
        data_dir = Path(folder)
        if version is not None:
            _install(data_dir, version)
        environment = {**os.environ, "FRONTDESK_LOG_LEVEL": "warning", **settings}
        async with running_product(data_dir, free_port(), environment=environment) as product:
            yield Endpoint(name, f"{product.url}/v1", "live", product.token, product.pid)


def _install(data_dir: Path, version: Path) -> None:
    """Have a version in a fresh data directory, and live."""
    from chatbot.bootstrap import artifacts_dir, open_database, open_versions
    from chatbot.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    target = artifacts_dir(settings) / "versions" / version.name
    shutil.copytree(version, target)
    database = open_database(settings)
    try:
        registry = open_versions(settings, database)
        found = registry.register(target)
        registry.promote(found.id, "bench", "measured", override=True)
    finally:
        database.close()
