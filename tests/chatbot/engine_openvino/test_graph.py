"""The graph against the same weights in torch: every family, chunked, mixed, with adapters."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

pytest.importorskip("openvino", reason="needs the extra: pip install 'frontdesk[openvino]'")

from chatbot.engine.interface import SamplingParams
from chatbot.engine.openvino.engine import skeleton
from chatbot.engine.openvino.export import Exported, convert
from chatbot.engine.openvino.runner import OpenVinoRunner
from chatbot.engine.torch.adapters import LoraAdapter, load_adapter
from chatbot.engine.torch.families import build_decoder
from chatbot.engine.torch.sampling import TokenChooser
from chatbot.engine.torch.scheduler import Step, Work
from chatbot.engine.torch.sequence import Sequence
from tests.chatbot.engine_openvino.tiny import CONFIGS, tiny_model

PROMPTS = [[(7 * i + k) % 256 for i in range(length)] for k, length in enumerate((70, 5, 33, 1))]
LLAMA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def exported(name: str) -> Exported:
    model = tiny_model(name)
    config = model.config
    return convert(build_decoder(model, 512, frozenset()), config, lambda _: None)


def rounded(name: str, export: Exported) -> Any:
    """The transformers model with the weights that int8 leaves of it."""
    model = tiny_model(name)
    weights = export.weights

    def matrix(key: str) -> torch.Tensor:
        codes = weights[f"{key}.codes"].astype(np.float32) - weights[f"{key}.zero"]
        return torch.from_numpy(codes * weights[f"{key}.scale"])

    modules = dict(model.named_modules())
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(matrix("embedding"))
        head = "head" if "head.codes" in weights else "embedding"
        model.get_output_embeddings().weight.copy_(matrix(head))
        for index, parts in enumerate(export.parts):
            site = ("qkv", "out", "up", "down")[index % 4]
            whole = matrix(f"layers.{index // 4}.{site}")
            for path, (first, last) in parts.items():
                weight = modules[path].weight
                rows = whole[first:last]
                weight.copy_(rows.t() if type(modules[path]).__name__ == "Conv1D" else rows)
    return model


def run_prompts(
    runner: OpenVinoRunner, adapters: list[LoraAdapter | None], chunk: int
) -> list[torch.Tensor]:
    """Prefill all prompts together, ``chunk`` tokens of each a step; their last logits."""
    sequences = []
    for number, (prompt, adapter) in enumerate(zip(PROMPTS, adapters, strict=True)):
        chooser = TokenChooser(SamplingParams(), prompt)
        sequence = Sequence(f"r{number}", tuple(prompt), 4, adapter=adapter, chooser=chooser)
        sequence.blocks = list(range(4 * number + 3, 4 * number - 1, -1))  # in no order
        sequences.append(sequence)
    logits: dict[int, torch.Tensor] = {}
    while any(sequence.remaining for sequence in sequences):
        works, numbers = [], []
        for number, sequence in enumerate(sequences):
            end = min(sequence.computed + chunk, len(sequence.tokens))
            if end > sequence.computed:
                last = end == len(sequence.tokens)
                works.append(Work(sequence, sequence.computed, end, last, False))
                numbers += [number] if last else []
                sequence.computed = end
        choices = runner.run(Step(tuple(works), (), ()))
        seen = torch.from_numpy(runner.logits().copy())
        assert len(choices) == len(seen) == len(numbers)
        for row, number in enumerate(numbers):
            logits[number] = seen[row]
            assert choices[row].tokens == (int(seen[row].argmax()),)
            wanted = torch.softmax(seen[row], -1).max().item()
            assert choices[row].probabilities[0] == pytest.approx(wanted, rel=1e-4)
    return [logits[number] for number in range(len(sequences))]


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    error = (found - wanted).norm() / wanted.norm()
    assert error < 2e-3, f"relative error {error}"


@pytest.mark.parametrize("chunk", [100, 32])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_graph_computes_what_transformers_does(name: str, chunk: int) -> None:
    export = exported(name)
    model = rounded(name, export)
    runner = OpenVinoRunner(export, 16, "float32", 1)
    found = run_prompts(runner, [None] * len(PROMPTS), chunk)
    with torch.inference_mode():
        for prompt, logits in zip(PROMPTS, found, strict=True):
            assert_close(logits, model(torch.tensor([prompt])).logits[0, -1])


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_in_bfloat16_are_the_int8_ones_rounded(name: str) -> None:
    export = exported(name)
    model = rounded(name, export)
    with torch.no_grad():
        # vectors and the position embedding stay float32
        kept = {key for key in model.state_dict() if "ln" in key or "wpe" in key or "bias" in key}
        for key, parameter in model.named_parameters():
            if key not in kept and "norm" not in key:
                parameter.copy_(parameter.bfloat16())
    runner = OpenVinoRunner(export, 16, "float32", 1, "bfloat16")
    assert runner.weights == "bfloat16"
    found = run_prompts(runner, [None] * len(PROMPTS), 32)
    with torch.inference_mode():
        for prompt, logits in zip(PROMPTS, found, strict=True):
            assert_close(logits, model(torch.tensor([prompt])).logits[0, -1])


def test_weights_are_wide_by_themselves_only_where_tiles_multiply_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export = exported("llama")
    assert OpenVinoRunner(export, 16, "float32", 1).weights == "int8"
    for tiles in (False, True):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=tiles: {"amx_bf16": has})
        found = OpenVinoRunner(export, 16, "bfloat16", 1)
        assert found.weights == ("bfloat16" if tiles else "int8")
        assert OpenVinoRunner(export, 16, "bfloat16", 1, "int8").weights == "int8"


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_adapters_of_any_rank_share_a_step(tmp_path: Path, name: str) -> None:
    export = exported(name)
    decoder = skeleton(export)
    runner = OpenVinoRunner(export, 16, "float32", 1)
    gpt2 = name == "gpt2"
    directories = [
        make_adapter(tmp_path / "a", name, r=4, seed=1),
        make_adapter(
            tmp_path / "b", name, r=9, seed=2, target_modules=None if not gpt2 else ["c_attn"]
        ),
    ]
    first, second = (load_adapter(d.name, d, decoder) for d in directories)
    found = run_prompts(runner, [first, second, None, first], 32)
    with torch.inference_mode():
        for number, directory in ((0, directories[0]), (1, directories[1]), (3, directories[0])):
            tuned = PeftModel.from_pretrained(rounded(name, export), directory)
            ids = torch.tensor([PROMPTS[number]])
            wanted = tuned(ids).logits[0, -1]
            assert_close(found[number], wanted)
            plain = rounded(name, export)(ids).logits[0, -1]
            assert (wanted - plain).norm() / plain.norm() > 0.1  # it matters
        plain = rounded(name, export)(torch.tensor([PROMPTS[2]])).logits[0, -1]
        assert_close(found[2], plain)


def test_the_same_step_without_adapters_again(tmp_path: Path) -> None:
    """Adapters leave nothing behind in the request's inputs."""
    export = exported("llama")
    runner = OpenVinoRunner(export, 16, "float32", 1)
    before = run_prompts(runner, [None] * 4, 100)
    adapter = load_adapter("a", make_adapter(tmp_path, "llama", r=4, seed=1), skeleton(export))
    run_prompts(runner, [adapter] * 4, 100)
    for left, right in zip(before, run_prompts(runner, [None] * 4, 100), strict=True):
        torch.testing.assert_close(left, right)


def make_adapter(directory: Path, name: str, *, seed: int, **options: Any) -> Path:
    """A PEFT adapter with random A and B, large enough to change the output."""
    gpt2 = name == "gpt2"
    targets = options.pop("target_modules", None)
    targets = targets or (["c_attn", "c_proj", "c_fc"] if gpt2 else LLAMA_TARGETS)
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        lora_alpha=8,
        target_modules=targets,
        fan_in_fan_out=gpt2,
        **options,
    )
    peft = get_peft_model(tiny_model(name), config)
    for key, parameter in peft.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    peft.save_pretrained(directory)
    return directory
