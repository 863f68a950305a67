"""A version's directory and the hashes that prove it."""

import json
from pathlib import Path

import pytest

from chatbot.errors import VersionCorrupt
from chatbot.manifest import Manifest, check_files, read_manifest, write_manifest
from tests.chatbot.versions import make_version


def test_what_was_written_is_read_and_checks(tmp_path: Path) -> None:
    directory = make_version(tmp_path, "v1")
    manifest = read_manifest(directory)
    assert manifest.id == "v1"
    assert sorted(manifest.files) == [
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "report.html",
        "report.json",
    ]
    check_files(directory, manifest.files)


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "report.json"])
def test_one_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    directory = make_version(tmp_path, "v1")
    files = read_manifest(directory).files
    data = bytearray((directory / name).read_bytes())
    data[-1] ^= 1
    (directory / name).write_bytes(data)
    with pytest.raises(VersionCorrupt, match="has changed") as caught:
        check_files(directory, files)
    assert caught.value.data["file"] == name


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    directory = make_version(tmp_path, "v1")
    files = read_manifest(directory).files
    (directory / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(VersionCorrupt, match=r"adapter_config\.json is missing"):
        check_files(directory, files)


def test_a_file_too_many_is_found(tmp_path: Path) -> None:
    directory = make_version(tmp_path, "v1")
    files = read_manifest(directory).files
    (directory / "adapter" / "extra.py").write_text("import os")
    with pytest.raises(VersionCorrupt, match=r"extra\.py is not in the manifest"):
        check_files(directory, files)


def test_a_link_is_refused(tmp_path: Path) -> None:
    directory = make_version(tmp_path, "v1")
    files = read_manifest(directory).files
    (directory / "adapter" / "link").symlink_to("/etc/hostname")
    with pytest.raises(VersionCorrupt, match="is a link"):
        check_files(directory, files)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "Invalid JSON"),
        ("{}", "id"),
        ('{"id": "../x", "base_model": "m", "created_at": 1, "files": {}}', "id"),
        ('{"id": "x", "base_model": "m", "created_at": 1, "files": {"a": "zz"}}', "files"),
    ],
)
def test_a_manifest_that_is_none_is_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(VersionCorrupt, match=told):
        read_manifest(tmp_path)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(VersionCorrupt, match="No such file"):
        read_manifest(tmp_path)


def test_a_full_disk_leaves_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory then is not a version, so nothing half-written is ever registered."""

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_text("x")
    monkeypatch.setattr("chatbot.manifest.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_manifest(tmp_path, id="v1", base_model="m", created_at=1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_unknown_fields_are_kept(tmp_path: Path) -> None:
    write_manifest(tmp_path, id="v1", base_model="m", created_at=1, seed=7)
    assert json.loads((tmp_path / "manifest.json").read_text())["seed"] == 7
    assert read_manifest(tmp_path) == Manifest(
        id="v1", base_model="m", created_at=1, files={}, seed=7
    )
