"""Checks of what the engine promises, on the real model and real visitors' words.

    python -m bench.engine --check NAME [--runtime torch|openvino] [--version DIRECTORY] [--quick]

    identity   float32 torch says what transformers' generate says, whatever happens meanwhile
    company    a reply is the same alone and among others
    leaks      a thousand random requests and cancels leave nothing
    arrival    a long prompt arrives beside running replies
    turns      the sixth turn prefills its new text alone
    quality    openvino beside bfloat16: perplexity and replies
    versions   a version is loaded, merged and removed beside running replies

Exits with 1 where the check fails. The last line is JSON.
"""

import argparse
import asyncio
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.serving import DATA

CHECKS = ("identity", "company", "leaks", "arrival", "turns", "quality", "versions")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", choices=CHECKS, required=True)
    parser.add_argument("--runtime", choices=("torch", "openvino"), default="torch")
    parser.add_argument("--version", type=Path, help="directory of a version")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE")
    parser.add_argument("--quick", action="store_true")
    parsed = parser.parse_args(arguments)
    parsed.settings = dict(pair.split("=", 1) for pair in parsed.set)
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    module = importlib.import_module(f"bench.engine.{options.check}")
    result = asyncio.run(module.check(options))
    print(json.dumps({"check": options.check, "runtime": options.runtime, **result}))
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
