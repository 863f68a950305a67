"""Versions made by hand for tests: real directories with real hashes, tiny contents."""

import json
from pathlib import Path
from typing import Any

from chatbot.manifest import write_manifest


def make_version(
    artifacts: Path,
    name: str,
    *,
    perplexity: float = 2.0,
    stop_rate: float = 1.0,
    base_model: str = "smollm2-135m",
    created_at: int = 1_700_000_000_000,
    live: dict[str, Any] | None = None,
    replies: list[str] | None = None,
    **facts: Any,
) -> Path:
    """Write a version as a training run does; gives its directory. ``facts``: more fields of the
    manifest."""
    directory = artifacts / "versions" / name
    (directory / "adapter").mkdir(parents=True)
    (directory / "adapter" / "adapter_config.json").write_text('{"r": 16}')
    (directory / "adapter" / "adapter_model.safetensors").write_bytes(name.encode() * 100)
    metrics = {"perplexity": perplexity, "stop_rate": stop_rate, "exact_match": 0.3}
    base = {"version": "base-smollm2-135m", "perplexity": 8.3, "stop_rate": 0.9}
    report = {"models": {"candidate": metrics, "live": live, "base": base}}
    (directory / "report.json").write_text(json.dumps(report))
    (directory / "report.html").write_text(f"<!doctype html><title>{name}</title>")
    if replies is not None:
        (directory / "replies.json").write_text(json.dumps(replies))
    write_manifest(
        directory,
        id=name,
        base_model=base_model,
        created_at=created_at,
        dataset_fingerprint="f" * 64,
        metrics=metrics,
        settings={"rank": 16},
        **facts,
    )
    return directory
