"""What a version's directory holds, and the hashes that prove it.

::

    <version id>/
      manifest.json    this module's :class:`Manifest`
      adapter/         a PEFT directory: adapter_config.json, adapter_model.safetensors
      report.json      the evaluation, and report.html, the same as a page
      replies.json     texts that several dialogues of the training data share: the engine's drafts

The manifest lists the sha256 of every other file; a file too many is as wrong as one too few.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chatbot.errors import VersionCorrupt

MANIFEST = "manifest.json"
ADAPTER = "adapter"
REPORT = "report.json"
REPORT_PAGE = "report.html"
REPLIES = "replies.json"  # optional: a JSON list of texts
BLOCK = 1 << 20

VersionId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """``files``: path inside the directory (with ``/``) -> sha256. ``created_at`` is Unix ms.
    Further fields are kept as they are."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: VersionId
    base_model: str = Field(min_length=1, max_length=255)
    created_at: int
    dataset_fingerprint: str = Field("", max_length=64)
    settings: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    files: dict[str, Sha256]


def write_manifest(directory: Path, **values: Any) -> Manifest:
    """Hash every file in ``directory`` and write ``manifest.json`` with ``values``
    (:class:`Manifest`'s fields but ``files``) last and whole, so that a directory with a manifest
    is a complete one.

    Raises:
        OSError: e.g. the disk is full; no manifest is left behind.
    """
    manifest = Manifest(files=_hashes(directory), **values)
    draft = directory / f".{MANIFEST}"
    try:
        with draft.open("w", encoding="utf-8") as file:
            json.dump(manifest.model_dump(mode="json"), file, indent=2, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(directory / MANIFEST)
    finally:
        draft.unlink(missing_ok=True)
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """Raises VersionCorrupt: it is missing, not JSON, or lacks a field."""
    path = directory / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise VersionCorrupt(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise VersionCorrupt(f"{path} is no manifest: {where}: {first['msg']}") from None


def check_files(directory: Path, files: dict[str, str]) -> None:
    """Compare every file of ``directory`` with its sha256 in ``files``.

    Raises:
        VersionCorrupt: names the first file that differs, is missing, or is not listed.
    """
    found = _hashes(directory)
    for name, expected in sorted(files.items()):
        if name not in found:
            raise VersionCorrupt(f"{directory / name} is missing", file=name)
        if found[name] != expected:
            raise VersionCorrupt(
                f"{directory / name} has changed since the version was made: its sha256 is "
                f"{found[name]}, the manifest says {expected}",
                file=name,
            )
    extra = sorted(found.keys() - files.keys())
    if extra:
        raise VersionCorrupt(
            f"{directory / extra[0]} is not in the manifest of its version", file=extra[0]
        )


def _hashes(directory: Path) -> dict[str, str]:
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            raise VersionCorrupt(f"{path} is a link; a version holds its files itself", file=name)
        if path.is_file() and name not in (MANIFEST, f".{MANIFEST}"):
            found[name] = _sha256(path, name)
    return found


def _sha256(path: Path, name: str) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise VersionCorrupt(f"{path} cannot be read: {error.strerror}", file=name) from error
    return digest.hexdigest()
