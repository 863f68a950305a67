"""Server-sent events from bytes, however the network cut them.

Lines end at CR, LF or both and at nothing else (HTML standard, 9.2.6): JSON may hold U+2028 or
U+0085, at which a splitter for text lines would cut it.
"""

MOST_BYTES = 1 << 20  # of one event; a completion's event has some hundred


class Garbage(ValueError):
    """What came is not what such a server says."""


class Events:
    """Give it bytes as they come; it gives the data of each event that they complete."""

    def __init__(self) -> None:
        self._held = b""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[str]:
        """The events that this completes; comments and fields other than ``data`` are skipped.

        Raises:
            Garbage: not UTF-8, or an event longer than MOST_BYTES.
        """
        *lines, self._held = (self._held + data).replace(b"\r\n", b"\n").split(b"\n")
        if len(self._held) > MOST_BYTES:
            raise Garbage("an event without an end")
        found = []
        for line in lines:
            event = self._line(line.rstrip(b"\r"))
            if event is not None:
                found.append(event)
        return found

    def end(self) -> list[str]:
        """What is left when the stream ends without the empty line that ends an event."""
        event = self._line(self._held.rstrip(b"\r")) if self._held else None
        self._held = b""
        rest = self._line(b"")
        return [found for found in (event, rest) if found is not None]

    def _line(self, line: bytes) -> str | None:
        """The event that the line ends, if it ends one."""
        if not line:
            event = "\n".join(self._data) if self._data else None
            self._data.clear()
            return event
        name, _, value = line.partition(b":")
        if name != b"data":
            return None
        try:
            self._data.append(value.removeprefix(b" ").decode())
        except UnicodeDecodeError as error:
            raise Garbage("an event that is not UTF-8") from error
        if sum(map(len, self._data)) > MOST_BYTES:
            raise Garbage("an event without an end")
        return None
