"""Frontdesk itself: `frontdesk up` in a data directory of its own, through its whole API."""

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.peers import Endpoint, Engine, PeerMissing
from bench.peers.processes import answering
from bench.product import CACHE, free_port, running_product
from chatbot.manifest import ADAPTER, MANIFEST

MERGE_SECONDS = 15.0  # a version that was just loaded is merged in the background


@asynccontextmanager
async def ours(
    name: str, version: Path | None, settings: dict[str, str], runtime: str = "auto"
) -> AsyncIterator[Engine]:
    """Started with ``settings`` (FRONTDESK_ variables) on ``runtime``, and, where ``version`` names
    a version's directory, with that version live.

    Raises:
        PeerMissing: the runtime is not installed.
    """
    runtime = installed_runtime(runtime)
    with tempfile.TemporaryDirectory(prefix="frontdesk-bench-") as folder:
        data_dir = Path(folder)
        if version is not None:
            install_version(data_dir, version)
        chosen = {"FRONTDESK_LOG_LEVEL": "warning", "FRONTDESK_ENGINE": runtime, **settings}
        environment = {**os.environ, **chosen}
        async with running_product(data_dir, free_port(), environment=environment) as product:
            server = Endpoint(name, f"{product.url}/v1", "live", product.token)
            score = [sys.executable, "-m", "bench.perplexity", runtime, "TEXTS", str(CACHE)]
            if version is not None:
                score += ["--adapter", str(version / ADAPTER)]
            await answering(server)
            if version is not None:
                await asyncio.sleep(MERGE_SECONDS)
            yield Engine(name, server.load, score, product.pid)


def installed_runtime(runtime: str) -> str:
    """The runtime by name; raises PeerMissing."""
    import importlib.util

    has_openvino = importlib.util.find_spec("openvino") is not None
    if runtime == "openvino" and not has_openvino:
        raise PeerMissing("ours: the openvino runtime is missing: pip install -e '.[openvino]'")
    if runtime == "auto":
        return "openvino" if has_openvino else "torch"
    return runtime


def install_version(data_dir: Path, version: Path) -> None:
    """Have a version in a fresh data directory, and live; with its run, where it is at hand."""
    from chatbot.bootstrap import artifacts_dir, open_database, open_versions
    from chatbot.settings import load_settings

    settings = load_settings(data_dir=data_dir)
    target = artifacts_dir(settings) / "versions" / version.name
    shutil.copytree(version, target)
    manifest = json.loads((version / MANIFEST).read_text(encoding="utf-8"))
    run = version.parents[2] / "runs" / str(manifest.get("run_id"))
    if run.is_dir():  # past replies are retrieved from it
        shutil.copytree(run, data_dir / "runs" / run.name)
    database = open_database(settings)
    try:
        registry = open_versions(settings, database)
        found = registry.register(target)
        registry.promote(found.id, "bench", "measured", override=True)
    finally:
        database.close()
