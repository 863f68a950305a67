"""What one writes first: a `transformers` generate loop behind a small server."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.peers import Endpoint, Engine, Needs
from bench.peers.processes import answering, served
from bench.peers.weights import Weights
from bench.product import free_port


@asynccontextmanager
async def generate(weights: Weights, needs: Needs) -> AsyncIterator[Engine]:
    directory, port = str(weights.merged()), free_port()
    command = [sys.executable, "-m", "bench.peers.generate_server", directory, str(port)]
    log = needs.work / "generate.log"
    async with served([*command, str(needs.most_chats)], log) as pid:
        endpoint = Endpoint("generate", f"http://127.0.0.1:{port}/v1", "merged")
        await answering(endpoint, log, pid)
        score = [sys.executable, "-m", "bench.perplexity", "transformers", "TEXTS", directory]
        yield Engine("generate", endpoint.load, score, pid)
