"""Perplexity of the weights that an engine serves, on the agent text of bench/texts.py.

    python -m bench.perplexity transformers TEXTS MODEL_DIRECTORY
    python -m bench.perplexity torch|openvino TEXTS DATA_DIRECTORY [--adapter DIRECTORY]
    python -m bench.perplexity vllm|llamacpp TEXTS URL

``torch`` and ``openvino`` are our own runtimes, computing as they serve: precision, LoRA beside the
weights, paged cache. ``transformers`` loads a directory in bfloat16. The others are running
servers, asked through the parts of their API that tell probabilities. The last line is JSON.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from bench.texts import LogProbs, Text, score_line

FEW = 64  # most probable tokens asked of llama.cpp; a token beyond them is asked for once more
CACHE_TOKENS = 4096
CHUNK = 256


def transformers_scorer(directory: str) -> LogProbs:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()

    def score(text: Text) -> list[float]:
        with torch.inference_mode():
            logits = model(torch.tensor([text.ids[:-1]])).logits[0]
        return _chosen(logits, text)

    return score


def _chosen(logits: Any, text: Text) -> list[float]:
    """From logits [tokens - 1, vocabulary]."""
    import torch

    log_probs = torch.log_softmax(logits.float(), -1)
    chosen = log_probs.gather(1, torch.tensor(text.ids[1:])[:, None]).squeeze(1)
    return text.of_agent(chosen.tolist())


def our_scorer(runtime: str, data_dir: str, adapter: Path | None) -> LogProbs:
    """One of our runtimes' runners, a chunk of rows at a time."""
    import torch

    from bench.engine.runners import open_runner
    from chatbot.engine.torch.scheduler import Step, Work
    from chatbot.engine.torch.sequence import Sequence as Request

    runner = open_runner(runtime, Path(data_dir), adapter, CACHE_TOKENS)

    def score(text: Text) -> list[float]:
        ids = text.ids
        request = Request("text", tuple(ids), 1, adapter=runner.adapter)
        request.blocks = list(range(-(-len(ids) // runner.block_size)))
        rows = []
        for start in range(0, len(ids) - 1, CHUNK):
            end = min(start + CHUNK, len(ids) - 1)
            rows.append(runner.score(Step((Work(request, start, end, False, False),), (), ())))
        return _chosen(torch.cat(rows), text)

    return score


def vllm_scorer(url: str) -> LogProbs:
    http = httpx.Client(base_url=url, timeout=600)
    model = http.get("models").json()["data"][0]["id"]

    def score(text: Text) -> list[float]:
        ids = text.ids
        body = {"model": model, "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0}
        answer = http.post("completions", json=body)
        answer.raise_for_status()
        places = answer.json()["choices"][0]["prompt_logprobs"]
        pairs = zip(places[1:], ids[1:], strict=True)
        return text.of_agent([place[str(token)]["logprob"] for place, token in pairs])

    return score


def llamacpp_scorer(url: str) -> LogProbs:
    """Its server tells the next token's probabilities only, so each place is a request, whose
    prompt is cached."""
    http = httpx.Client(base_url=url.removesuffix("/").removesuffix("/v1"), timeout=600)
    vocabulary = http.get("/v1/models").json()["data"][0]["meta"]["n_vocab"]

    def after(ids: list[int], count: int) -> dict[int, float]:
        body = {"prompt": ids, "n_predict": 1, "n_probs": count, "temperature": 0}
        answer = http.post("/completion", json={**body, "cache_prompt": True, "id_slot": 0})
        answer.raise_for_status()
        (place,) = answer.json()["completion_probabilities"]
        return {item["id"]: item["logprob"] for item in place["top_logprobs"]}

    def score(text: Text) -> list[float]:
        ids, found = text.ids, []
        for place in text.places:
            likely = after(ids[:place], FEW)
            if ids[place] not in likely:
                likely = after(ids[:place], vocabulary)
            found.append(likely[ids[place]])
        return found

    return score


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    kinds = ("transformers", "torch", "openvino", "vllm", "llamacpp")
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("texts", type=Path)
    parser.add_argument("place", help="a directory, or the address of a server")
    parser.add_argument("--adapter", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    if given.kind in ("torch", "openvino"):
        scorer = our_scorer(given.kind, given.place, given.adapter)
    else:
        makers = {
            "transformers": transformers_scorer,
            "vllm": vllm_scorer,
            "llamacpp": llamacpp_scorer,
        }
        scorer = makers[given.kind](given.place)
    print(score_line(given.texts, scorer))


if __name__ == "__main__":
    main()
