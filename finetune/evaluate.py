"""How well a model answers held-out dialogues.

Perplexity is taken over every agent turn. For the other measures the model writes the replies of
a sample of turns (ordered by hash, so fair and the same for every model and every run), greedily,
after the conversation as it really went. One pass over a dialogue gives both: its keys and values
are those that the replies start from.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from sacrebleu import corpus_bleu, corpus_chrf

from chatbot.errors import RunInterrupted
from chatbot.prompt import EncodedDialogue, encode_dialogue
from finetune.generate import Prompt, Reply, take_prompt, write_replies
from finetune.lora import fused, logits_at
from finetune.progress import OnProgress, Progress
from finetune.transcripts import Dialogue
from finetune.transcripts.model import agent_kinds
from finetune.transcripts.sets import normal_key

MAX_REPLY_TOKENS = 128
LONGEST_DIALOGUE = 8192
REPLIES_AT_ONCE = 16
KINDS = ("template", "custom")


@dataclass(frozen=True, slots=True)
class Turn:
    """An agent's turn whose reply is written: ``dialogues[dialogue].messages[message]``."""

    dialogue: int
    message: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a report says of one model. Rates are 0..1; chrF and BLEU 0..100 (sacrebleu);
    ``seconds_per_reply`` is the time of writing, shared by the replies written together.
    ``turns`` counts the replies written. None: there was no turn to take it from."""

    version: str
    perplexity: float | None
    perplexity_template: float | None
    perplexity_custom: float | None
    exact_match: float | None
    exact_match_template: float | None
    exact_match_custom: float | None
    chrf: float | None
    bleu: float | None
    stop_rate: float | None
    mean_tokens: float | None
    seconds_per_reply: float | None
    turns: int
    perplexity_turns: int
    turns_left_out: int  # beyond the model's context

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Loss:
    """Summed negative log-likelihood in nats, by kind of turn ("" where it is not known)."""

    nats: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    turns: int = 0

    def add(self, kind: str, nats: float, tokens: int) -> None:
        self.nats[kind] = self.nats.get(kind, 0.0) + nats
        self.tokens[kind] = self.tokens.get(kind, 0) + tokens
        self.turns += 1

    def perplexity(self, kinds: Iterable[str]) -> float | None:
        nats = sum(self.nats.get(kind, 0.0) for kind in kinds)
        tokens = sum(self.tokens.get(kind, 0) for kind in kinds)
        return math.exp(min(nats / tokens, 700.0)) if tokens else None


def sample_turns(dialogues: Sequence[Dialogue], count: int) -> list[Turn]:
    """``count`` agent turns, drawn by hash from all dialogues."""
    ranked = []
    for index, dialogue in enumerate(dialogues):
        key = normal_key(dialogue)
        for place, message in enumerate(dialogue.messages):
            if message["role"] == "assistant":
                rank = hashlib.sha256(f"{key}/{place}".encode()).hexdigest()
                ranked.append((rank, Turn(index, place)))
    return [turn for _, turn in sorted(ranked, key=lambda item: item[0])[:count]]


def evaluate_model(
    version: str,
    model: Any,
    tokenizer: Any,
    dialogues: Sequence[Dialogue],
    turns: Sequence[Turn],
    on_progress: OnProgress,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Metrics, dict[Turn, Reply]]:
    """Measure ``model`` (a peft model, or a bare one) and give the replies it wrote.

    Raises:
        RunInterrupted: ``should_stop`` said so.
    """
    judge = _Judge(model, tokenizer, dialogues, turns)
    model.eval()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if hasattr(model, "peft_config"):
            stack.enter_context(fused(model))
        began = time.monotonic()
        for number, dialogue in enumerate(dialogues, start=1):
            if should_stop():
                raise RunInterrupted("stopped while the report was being made")
            judge.read(number - 1, dialogue)
            spent = time.monotonic() - began
            left = spent / number * (len(dialogues) - number)
            on_progress(
                Progress("evaluate", number, len(dialogues), seconds_left=left, message=version)
            )
        judge.write(everything=True)
    return judge.metrics(version), judge.replies


class _Judge:
    """Reads dialogues one by one; writes replies whenever enough prompts wait."""

    def __init__(
        self, model: Any, tokenizer: Any, dialogues: Sequence[Dialogue], turns: Sequence[Turn]
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._dialogues = dialogues
        self._wanted: dict[int, list[Turn]] = {}
        for turn in turns:
            self._wanted.setdefault(turn.dialogue, []).append(turn)
        positions = getattr(model.config, "max_position_embeddings", None) or LONGEST_DIALOGUE
        self._limit = min(positions - MAX_REPLY_TOKENS, LONGEST_DIALOGUE)
        self._loss = _Loss()
        self._waiting: list[tuple[Turn, Prompt]] = []
        self._left_out = 0
        self._seconds = 0.0
        self.replies: dict[Turn, Reply] = {}

    def read(self, index: int, dialogue: Dialogue) -> None:
        encoded = encode_dialogue(list(dialogue.messages), self._tokenizer, self._limit)
        self._left_out += dialogue.agent_turns - len(encoded.spans)
        if not encoded.spans:
            return
        kinds = agent_kinds(dialogue)
        cache = self._score(encoded, kinds)
        starts = {span.message: span.start for span in encoded.spans}
        for turn in self._wanted.get(index, []):
            if turn.message in starts:
                ids = encoded.ids[: starts[turn.message]]
                self._waiting.append((turn, take_prompt(cache, ids)))
        if len(self._waiting) >= REPLIES_AT_ONCE:
            self.write()

    def _score(self, encoded: EncodedDialogue, kinds: dict[int, str]) -> Any:
        """Add the dialogue's losses; gives the keys and values of its tokens."""
        ids = torch.tensor([encoded.ids], device=self._model.device)
        where = torch.zeros_like(ids, dtype=torch.bool)
        for span in encoded.spans:
            where[0, max(span.start, 1) - 1 : span.end - 1] = True
        with logits_at(self._model, where):
            output = self._model(input_ids=ids, use_cache=True)
        nats = torch.nn.functional.cross_entropy(
            output.logits[0].float(), ids[:, 1:][where[:, :-1]], reduction="none"
        )
        done = 0
        for span in encoded.spans:
            count = span.end - max(span.start, 1)
            total = nats[done : done + count].sum().item()
            self._loss.add(kinds.get(span.message, ""), total, count)
            done += count
        return output.cache

    def write(self, everything: bool = False) -> None:
        while len(self._waiting) >= (1 if everything else REPLIES_AT_ONCE):
            batch = self._waiting[:REPLIES_AT_ONCE]
            del self._waiting[:REPLIES_AT_ONCE]
            began = time.monotonic()
            prompts = [prompt for _, prompt in batch]
            written = write_replies(self._model, self._tokenizer, prompts, MAX_REPLY_TOKENS)
            self._seconds += time.monotonic() - began
            for (turn, _), reply in zip(batch, written, strict=True):
                self.replies[turn] = reply

    def metrics(self, version: str) -> Metrics:
        hits: dict[str, list[bool]] = {kind: [] for kind in ("", *KINDS)}
        kinds = [agent_kinds(dialogue) for dialogue in self._dialogues]
        references = []
        for turn, reply in self.replies.items():
            reference = self._dialogues[turn.dialogue].messages[turn.message]["content"]
            references.append(reference)
            hit = reply.text.strip() == reference.strip()
            hits[kinds[turn.dialogue].get(turn.message, "")].append(hit)
        texts = [reply.text for reply in self.replies.values()]
        count = len(texts)
        return Metrics(
            version=version,
            perplexity=self._loss.perplexity(("", *KINDS)),
            perplexity_template=self._loss.perplexity(("template",)),
            perplexity_custom=self._loss.perplexity(("custom",)),
            exact_match=_mean([hit for found in hits.values() for hit in found]),
            exact_match_template=_mean(hits["template"]),
            exact_match_custom=_mean(hits["custom"]),
            chrf=corpus_chrf(texts, [references]).score if count else None,
            bleu=corpus_bleu(texts, [references]).score if count else None,
            stop_rate=_mean([reply.stopped for reply in self.replies.values()]),
            mean_tokens=_mean([reply.tokens for reply in self.replies.values()]),
            seconds_per_reply=self._seconds / count if count else None,
            turns=count,
            perplexity_turns=self._loss.turns,
            turns_left_out=self._left_out,
        )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
