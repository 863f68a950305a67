"""Files and directories that appear whole or not at all, and a full disk by its name."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from chatbot.errors import FrontdeskError, InputError, StorageFull

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def full_disk_named(target: Path) -> Iterator[None]:
    """Turn the operating system's "no space left" into StorageFull."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageFull(
                f"no room left to write {target}. Free space there and try again; what was "
                "stored before is unchanged."
            ) from error
        raise


def require_target(target: Path) -> None:
    """Refuse a file that a person named, before anything is done for it. A folder that is missing
    is more likely a slip of the pen than a wish, and a device must not be replaced by a file.

    Raises:
        InputError: its folder is missing, or it is no regular file.
    """
    with write_errors_named(target):
        if not target.parent.is_dir():
            there = "is no folder" if target.parent.exists() else "does not exist"
            raise InputError(f"{target} cannot be written: {target.parent} {there}")
        if target.exists() and not target.is_file():
            what = "a folder" if target.is_dir() else "no regular file"
            raise InputError(f"{target} cannot be written: it is {what}")


@contextlib.contextmanager
def write_errors_named(target: Path) -> Iterator[None]:
    """Turn what the operating system says into one line that names the file.

    Raises:
        InputError, StorageFull.
    """
    try:
        with full_disk_named(target):
            yield
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}") from error


def write_file(path: Path, data: bytes) -> None:
    """Write and flush to the disk: an error comes now, not when it is too late."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """The path of a draft that becomes ``target`` at the end.

    Raises:
        StorageFull: nothing is left behind, and the old file is as it was.
    """
    with full_disk_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            yield draft
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file beside its place and move it there. Raises as :func:`whole_file`."""
    with whole_file(path) as draft:
        write_file(draft, data)


@contextlib.contextmanager
def only_one(path: Path, busy: FrontdeskError) -> Iterator[None]:
    """Hold the lock file ``path``; the system frees it however this process ends.

    Raises:
        FrontdeskError: ``busy``, when another process holds it.
    """
    with full_disk_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        yield


@contextlib.contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """A scratch directory that becomes ``target`` at the end; nothing is left when it fails.

    Raises:
        StorageFull: the disk has no room.
        FileExistsError: ``target`` is there already.
    """
    with full_disk_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield scratch
            scratch.chmod(0o755)
            if target.exists():
                raise FileExistsError(errno.EEXIST, "exists already", str(target))
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
