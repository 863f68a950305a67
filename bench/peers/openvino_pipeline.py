"""Drives OpenVINO GenAI's ContinuousBatchingPipeline in its own process, without HTTP: the fastest
that its kernels and scheduler give.

    python -m bench.peers.openvino_pipeline IR_DIRECTORY [options of bench.load]
    python -m bench.peers.openvino_pipeline IR_DIRECTORY --score TEXTS

Text is decoded once a reply, after its last token. The last line is JSON.
"""

import argparse
import asyncio
import json
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from transformers import AutoTokenizer

from bench.load import Messages, Turn, add_load_options, run, summary
from bench.texts import Text, score_line

CACHE_GB = 2


class Pipeline:
    """The pipeline, the thread that steps it, and the asyncio side."""

    def __init__(self, directory: Path, prefix_caching: bool = True) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GB
        scheduler.enable_prefix_caching = prefix_caching
        self._pipeline = genai.ContinuousBatchingPipeline(directory, scheduler, "CPU")
        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory)
        self._news = threading.Condition()
        self._asked: list[tuple[Any, Any, Any]] = []
        self._running: list[tuple[Any, Any]] = []
        self._numbers = 0
        threading.Thread(target=self._run, daemon=True).start()

    async def tokens(self, ids: list[int], config: Any) -> list[tuple[float, Any]]:
        """What came: (when, an output of GenAI), to the end."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[tuple[float, Any]]] = loop.create_future()
        with self._news:
            self._asked.append((ids, config, (loop, done, [])))
            self._news.notify()
        return await done

    async def ask(self, spec: argparse.Namespace, messages: Messages) -> Turn:
        config = genai.GenerationConfig()
        config.max_new_tokens = spec.tokens or spec.longest
        config.ignore_eos = bool(spec.tokens)
        config.eos_token_id = self._tokenizer.eos_token_id
        config.do_sample = False
        began = time.perf_counter()
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        outputs = await self.tokens(ids, config)
        times = [when for when, _ in outputs]
        written = [token for _, output in outputs for token in output.generated_ids]
        return Turn(
            first_text=times[0] - began,
            gaps=[later - before for before, later in pairwise(times)],
            tokens=len(written),
            prompt_tokens=len(ids),
            cached_tokens=None,
            text=self._tokenizer.decode(written, skip_special_tokens=True),
        )

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._asked or self._running)
                asked, self._asked = self._asked, []
            for ids, config, waiter in asked:
                self._numbers += 1
                prompt = ov.Tensor(np.array([ids], np.int64))
                handle = self._pipeline.add_request(self._numbers, prompt, config)
                self._running.append((handle, waiter))
            self._pipeline.step()
            now = time.perf_counter()
            self._running = [pair for pair in self._running if not _read(*pair, now)]


def _read(handle: Any, waiter: Any, now: float) -> bool:
    """Take what there is; whether it was the last."""
    loop, done, outputs = waiter
    while handle.can_read():
        outputs += [(now, output) for output in handle.read().values()]
    if handle.get_status() == genai.GenerationStatus.RUNNING:
        return False
    loop.call_soon_threadsafe(done.set_result, outputs)
    return True


def scored(directory: Path, texts: Path) -> str:
    """By echoing prompts with the probability of each token."""
    pipeline = Pipeline(directory, prefix_caching=False)
    config = genai.GenerationConfig()
    config.max_new_tokens = 1
    config.echo = True
    config.logprobs = 1
    config.do_sample = False

    def score(text: Text) -> list[float]:
        ids = text.ids
        outputs = asyncio.run(pipeline.tokens(ids, config))
        found = [value for _, output in outputs for value in output.generated_log_probs]
        written = [token for _, output in outputs for token in output.generated_ids]
        if written[: len(ids)] != ids:
            raise RuntimeError("the pipeline did not echo the prompt")
        return text.of_agent(found[1 : len(ids)])

    return score_line(texts, score)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--score", type=Path, metavar="TEXTS")
    add_load_options(parser, needs_data=False)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    spec = parse(arguments)
    if spec.score:
        print(scored(spec.directory, spec.score))
        return
    pipeline = Pipeline(spec.directory)

    async def measured() -> dict[str, Any]:
        warm = argparse.Namespace(tokens=4, longest=4)
        await pipeline.ask(warm, [{"role": "user", "content": "Hello"}])
        return summary(await run(spec, lambda messages: pipeline.ask(spec, messages)))

    print(json.dumps(asyncio.run(measured())))


if __name__ == "__main__":
    main()
