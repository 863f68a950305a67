"""OpenVINO GenAI's ContinuousBatchingPipeline, raw: no server around it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.peers import Engine, Needs, peer_python
from bench.peers.weights import Weights

INSTALL = "openvino-genai==2026.4.1.0 optimum-intel==2.2.0 nncf 'transformers<5.6' httpx"


@asynccontextmanager
async def openvino(weights: Weights, needs: Needs) -> AsyncIterator[Engine]:
    python = await peer_python(needs, "openvino", "openvino_genai", INSTALL)
    directory = str(weights.openvino(python))
    command = [python, "-m", "bench.peers.openvino_pipeline", directory]
    yield Engine("openvino", command, [*command, "--score", "TEXTS"], in_process=True)
