"""In bfloat16 a reply does not depend on its company."""

import json
import os
import subprocess
import sys

import pytest
import torch

has_bfloat16 = bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def differing(runtime: str) -> dict[str, int]:
    """Rows of each case that differ; by the instructions for which it is promised."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.chatbot.engine_contract.company", runtime],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    counts: dict[str, int] = json.loads(found.stdout)
    return counts


@pytest.mark.skipif(not has_bfloat16, reason="promised where processors compute in bfloat16")
@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_rows_have_the_same_bits_in_any_company(runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="needs the extra: pip install 'frontdesk[openvino]'")
    found = differing(runtime)
    assert len(found) >= 7
    assert not any(found.values()), found
