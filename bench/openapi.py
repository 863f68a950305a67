"""Requests generated from the OpenAPI document, against the whole product as an administrator: no
answer may be a server error, and none may look otherwise than the document says.

    python -m bench.openapi --schemathesis PROGRAM [--seconds 300] [--examples 15]

``make fuzz`` installs schemathesis (https://schemathesis.readthedocs.io) into an environment of its
own: its pytest plugin does not go with the tests' pytest. The last line is JSON; the exit code is
schemathesis' own, 0 when nothing was found.
"""

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from pathlib import Path

from bench.product import Product, free_port, running_product

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
# everything comes from one address and one account here
LIMITS = {
    "FRONTDESK_REPLY_MAX_TOKENS": "8",
    "FRONTDESK_VISITORS_PER_MINUTE": "1000000",
    "FRONTDESK_CONVERSATIONS_PER_ADDRESS": "1000000",
}


async def run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="frontdesk-openapi-") as folder:
        async with running_product(Path(folder), free_port(), environment=LIMITS) as product:
            began = time.monotonic()
            code, said = await _generate(product, options)
            result = {
                "bench": "openapi",
                "requests": _number(r"(\d+) generated", said),
                "failures": _number(r"found (\d+) unique failures", said),
                "seconds": round(time.monotonic() - began),
                "passed": code == 0,
            }
    print(json.dumps(result))
    return code


async def _generate(product: Product, options: argparse.Namespace) -> tuple[int, str]:
    """Run schemathesis, its output shown as it comes; its exit code and output."""
    process = await asyncio.create_subprocess_exec(
        *(options.schemathesis, "run", f"{product.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {product.token}"),
        *("--checks", ",".join(CHECKS), "--continue-on-failure", "--no-color"),
        # counting what training would use reads all of it the first time
        *("--request-timeout", "120"),
        *("--max-examples", str(options.examples), "--max-time", str(options.seconds)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    lines = []
    async for line in process.stdout:
        lines.append(line.decode(errors="replace"))
        print(lines[-1], end="")
    return await process.wait(), "".join(lines)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--schemathesis", required=True, help="the program")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--examples", type=int, default=15, help="of each operation, at most")
    sys.exit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
