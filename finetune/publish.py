"""A finished run as a version's directory: adapter, report and manifest, whole or not at all."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chatbot.manifest import ADAPTER, MANIFEST, REPLIES, REPORT, REPORT_PAGE, write_manifest
from finetune.lora import WEIGHTS
from finetune.report import render_html
from finetune.storage import full_disk_named, whole_directory, write_file
from finetune.transcripts import Dialogue

SHARED_BY = 3  # dialogues
MOST_REPLIES = 500


def version_id(adapter: Path, at: datetime) -> str:
    """E.g. ``v20261123-1a2b3c``: the day (UTC) and a hash of the adapter's weights."""
    return f"v{at.astimezone(UTC):%Y%m%d}-{adapter_hash(adapter)[:6]}"


def adapter_hash(adapter: Path) -> str:
    """sha256, hex, of the weights."""
    digest = hashlib.sha256()
    with (adapter / WEIGHTS).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def publish(
    artifacts: Path,
    name: str,
    adapter: Path,
    report: Mapping[str, Any],
    replies: Sequence[str] = (),
    **facts: Any,
) -> Path:
    """Write ``<artifacts>/versions/<name>`` and give it; a version that is there already (the
    same adapter of the same day) is left as it is.

    Args:
        replies: what :func:`common_replies` found.
        facts: further fields of :class:`chatbot.manifest.Manifest`.

    Raises:
        StorageFull: nothing is left behind.
    """
    target = artifacts / "versions" / name
    if (target / MANIFEST).is_file():
        return target
    with whole_directory(target) as scratch:
        shutil.copytree(adapter, scratch / ADAPTER)
        write_report(scratch, report)
        write_file(scratch / REPLIES, json.dumps(list(replies), ensure_ascii=False).encode())
        write_manifest(scratch, id=name, metrics=report["models"]["candidate"], **facts)
    return target


def common_replies(dialogues: Iterable[Dialogue]) -> list[str]:
    """Agents' texts that several dialogues have in common, the most frequent last, so that they
    are the last to go where memory is short. What fewer say could be about one person; that is
    not written into a version."""
    found: Counter[str] = Counter()
    for dialogue in dialogues:
        found.update(
            {
                message["content"]
                for message in dialogue.messages
                if message["role"] == "assistant" and message.get("weight", 1)
            }
        )
    common = [text for text, count in found.most_common(MOST_REPLIES) if count >= SHARED_BY]
    return common[::-1]


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """report.json and report.html. Raises StorageFull."""
    with full_disk_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=2, ensure_ascii=False)
        write_file(folder / REPORT, text.encode())
        write_file(folder / REPORT_PAGE, render_html(report).encode())
