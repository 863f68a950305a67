"""Where the Frontdesk server is: the one place in which the console reads the environment."""

import os
from collections.abc import Mapping

LOOPBACK = "127.0.0.1"
ANY_ADDRESS = {"0.0.0.0": LOOPBACK, "::": "[::1]", "": LOOPBACK}


def server_url(environ: Mapping[str, str] = os.environ) -> str:
    """Base address of the server, without a slash at the end.

    ``FRONTDESK_PUBLIC_URL`` if it is set, else ``http://FRONTDESK_HOST:FRONTDESK_PORT`` with the
    server's own defaults. A server that listens on every address is reached over loopback.
    """
    public = environ.get("FRONTDESK_PUBLIC_URL", "").strip()
    if public:
        return public.rstrip("/")
    host = environ.get("FRONTDESK_HOST", LOOPBACK).strip()
    host = ANY_ADDRESS.get(host, host)
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"  # RFC 3986 section 3.2.2: IPv6 addresses stand in brackets
    return f"http://{host}:{environ.get('FRONTDESK_PORT', '8080').strip()}"


def console_port(environ: Mapping[str, str] = os.environ) -> int:
    """``FRONTDESK_CONSOLE_PORT``, or 8501.

    Raises:
        ValueError: not a number; names the variable.
    """
    value = environ.get("FRONTDESK_CONSOLE_PORT", "8501")
    if not value.strip().isdigit():
        raise ValueError(f"FRONTDESK_CONSOLE_PORT must be a port number, got {value!r}")
    return int(value)
