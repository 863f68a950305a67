"""A byte tokenizer, tiny random models, and short ways to drive an engine."""

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from chatbot.engine.interface import Chunk, GenerationRequest, SamplingParams
from chatbot.engine.torch.draft_policy import Chance, Draft, DraftPolicy
from chatbot.engine.torch.engine import TorchEngine
from chatbot.engine.torch.sampling import Choice, verify
from chatbot.engine.torch.scheduler import Step
from chatbot.settings import Settings

VOCABULARY = 260
END = 256


class ByteTokenizer:
    """256 bytes, and one end token that decodes to nothing."""

    eos_token_id: int | None = END
    chat_template: Any = None

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(i for i in token_ids if i < 256).decode(errors="replace")

    def __len__(self) -> int:
        return VOCABULARY


_LLAMA_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # large enough for outputs that depend on the prompt
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**_LLAMA_LIKE),
    "llama-bias-tied": lambda: LlamaConfig(
        **_LLAMA_LIKE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "llama3-rope": lambda: LlamaConfig(**_LLAMA_LIKE, rope_parameters=dict(_LLAMA3_ROPE)),
    "linear-rope": lambda: LlamaConfig(
        **_LLAMA_LIKE,
        rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    ),
    "mistral": lambda: MistralConfig(**_LLAMA_LIKE, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**_LLAMA_LIKE),
    "qwen3": lambda: Qwen3Config(**_LLAMA_LIKE, head_dim=16),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=48,
        n_layer=2,
        n_head=4,
        n_positions=512,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    ),
}


def tiny_model(name: str = "llama") -> Any:
    """A random model in float32, the same one for the same name."""
    torch.manual_seed(20)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]()).float().eval()
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):  # they start at zero, where a forgotten bias would not show
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.pad_token_id = 0
    return model


def tiny_settings(**changes: Any) -> Settings:
    given: dict[str, Any] = {
        "dtype": "float32",
        "device": "cpu",
        "engine_threads": 1,
        "kv_cache_tokens": 4096,
        "prefill_chunk_tokens": 64,
        "prefill_stretch": 0.0,  # what a step holds must not depend on the clock
        "max_context_tokens": 512,
        "max_running": 8,
    }
    return Settings(**(given | changes))


@asynccontextmanager
async def running(
    model: Any,
    tokenizer: Any = None,
    runner: Any = None,
    policy: DraftPolicy | None = None,
    **settings: Any,
) -> AsyncIterator[TorchEngine]:
    """A started engine on a copy of the model; closed at the end."""

    def load_model(name: str, data_dir: Path, dtype: torch.dtype, device: str) -> Any:
        return copy.deepcopy(model)

    def load_tokenizer(name: str, data_dir: Path) -> Any:
        return tokenizer or ByteTokenizer()

    extra = {} if runner is None else {"make_runner": runner}
    engine = TorchEngine(
        tiny_settings(**settings), load_model, load_tokenizer, draft_policy=policy, **extra
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


class Counter:
    """Request ids r0, r1, ..."""

    def __init__(self) -> None:
        self.next = 0

    def __call__(self) -> str:
        self.next += 1
        return f"r{self.next}"


request_id = Counter()


def request(
    prompt: Iterable[int], adapter: str | None = None, salt: str = "", **sampling: Any
) -> GenerationRequest:
    return GenerationRequest(request_id(), tuple(prompt), SamplingParams(**sampling), adapter, salt)


async def collect(engine: TorchEngine, asked: GenerationRequest) -> list[Chunk]:
    return [chunk async for chunk in engine.submit(asked)]


async def tokens_of(engine: TorchEngine, asked: GenerationRequest) -> list[int]:
    return [token for chunk in await collect(engine, asked) for token in chunk.token_ids]


async def text_of(engine: TorchEngine, asked: GenerationRequest) -> str:
    return "".join(chunk.text for chunk in await collect(engine, asked))


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition; fail when it does not come true in time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what another thread does has no event
            await asyncio.sleep(0.002)


def generate(model: Any, prompt: Sequence[int], count: int, **options: Any) -> list[int]:
    """The tokens that transformers' own greedy generate adds to the prompt."""
    ids = torch.tensor([list(prompt)])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        **options,
    )
    return out[0, len(prompt) :].tolist()


class ScriptedRunner:
    """A runner without a model: each reply is its script, token by token.

    ``scripts`` maps the first token of a prompt to the reply's tokens.
    """

    def __init__(self, scripts: dict[int, Sequence[int]]) -> None:
        self.scripts = scripts

    def __call__(self, decoder: Any, blocks: int, block_size: int) -> "ScriptedRunner":
        return self

    def run(self, step: Step) -> list[Choice]:
        tokens: list[int] = []
        for work in step.sampling:
            script = self.scripts[work.sequence.prompt[0]]
            first = work.sequence.generated
            tokens += (script[first + ahead] for ahead in range(work.choices))
        return verify(step.sampling, tokens, [0.5] * len(tokens))


class EagerDrafts(DraftPolicy):
    """Verifies everything that is drafted, whatever it costs."""

    def least_chance(self, replies: int, rows: int) -> float:
        return 0.0

    def lengths(self, drafts: Sequence[tuple[Draft, Chance]], replies: int, rows: int) -> list[int]:
        return [len(draft.tokens) for draft, _ in drafts]


def drafts(engine: TorchEngine) -> tuple[int, int]:
    """(drafted, accepted) of all sources."""
    counts = engine.stats().drafts
    return sum(count.drafted for count in counts), sum(count.accepted for count in counts)
