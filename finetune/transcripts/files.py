"""Files as numbered records: line by line, gzip or not, never the whole file in memory."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from chatbot.errors import TranscriptError
from finetune.transcripts.model import MAX_LINE_BYTES, Reason, Rejected

GZIP_MAGIC = b"\x1f\x8b"
BLANK = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON value and the line it began on."""

    line: int
    value: Any


def open_bytes(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked if it is gzip (by its content, whatever its name).

    Raises:
        TranscriptError: missing, a folder, not readable, or empty.
    """
    try:
        with path.open("rb") as probe:
            magic = probe.read(2)
        if not magic:
            raise TranscriptError(f"{path} is empty: there are no transcripts in it")
        opened = gzip.open(path, "rb") if magic == GZIP_MAGIC else path.open("rb")  # noqa: SIM115
        return cast(IO[bytes], opened)
    except OSError as error:
        raise TranscriptError(f"{path} cannot be read: {error.strerror or error}") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes] | Rejected]:
    """Lines that are not blank, with their numbers from 1. A line over MAX_LINE_BYTES, and the
    rest of a damaged gzip file, come as Rejected."""
    number = 0
    with open_bytes(path) as file:
        try:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    _skip_rest_of_line(file, line)
                    yield Rejected(number, Reason.LINE_TOO_LONG, f"over {MAX_LINE_BYTES:,} bytes")
                elif line.strip(BLANK):
                    yield number, line
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            detail = f"the rest of the file cannot be unpacked: {error}"
            yield Rejected(number + 1, Reason.DAMAGED_FILE, detail)


def _skip_rest_of_line(file: IO[bytes], line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = file.readline(MAX_LINE_BYTES)


def json_records(path: Path) -> Iterator[Record | Rejected]:
    """Values of a JSON-lines file, or the elements of a file that is one JSON array."""
    if _first_byte(path) == b"[":
        yield from _array_records(path)
        return
    for item in numbered_lines(path):
        if isinstance(item, Rejected):
            yield item
            continue
        number, line = item
        try:
            yield Record(number, json.loads(_decode(line)))
        except UnicodeDecodeError as error:
            yield Rejected(number, Reason.INVALID_UTF8, f"byte {error.start + 1}: {error.reason}")
        except (ValueError, RecursionError) as error:
            yield Rejected(number, Reason.MALFORMED_JSON, _short(error))


def _decode(line: bytes) -> str:
    return line.decode("utf-8-sig")


def _short(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"column {error.colno}: {error.msg}"
    return str(error)[:200] or type(error).__name__


def _first_byte(path: Path) -> bytes:
    with open_bytes(path) as file:
        try:
            start = file.read(4096)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return b""
    return start.removeprefix(b"\xef\xbb\xbf").lstrip(BLANK)[:1]


def _array_records(path: Path) -> Iterator[Record | Rejected]:
    """Elements of one big array, decoded as soon as their last line was read."""
    decoder = json.JSONDecoder()
    buffer, began, opened = "", 1, False
    for item in numbered_lines(path):
        if isinstance(item, Rejected):
            yield item
            return
        number, line = item
        try:
            text = _decode(line)
        except UnicodeDecodeError as error:
            yield Rejected(number, Reason.INVALID_UTF8, f"byte {error.start + 1}; rest skipped")
            return
        if not opened:
            text, opened = text.lstrip().removeprefix("["), True
        if not buffer.strip(" \t\r\n,"):
            began = number
        buffer += text
        while (buffer := buffer.lstrip(" \t\r\n,")) and buffer[0] != "]":
            try:
                value, end = decoder.raw_decode(buffer)
            except ValueError:
                break  # the element goes on in the next line
            yield Record(began, value)
            buffer, began = buffer[end:], number
        if len(buffer) > MAX_LINE_BYTES:
            yield Rejected(began, Reason.MALFORMED_JSON, "no element ends here; rest skipped")
            return
    if buffer.lstrip(" \t\r\n,")[:1] not in ("]", ""):
        yield Rejected(began, Reason.MALFORMED_JSON, "an element of the array does not end")
