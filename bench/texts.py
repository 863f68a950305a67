"""The agent text that every engine's weights are scored on, as token ids in a file.

Engines run in environments of their own, with other tokenizers' versions: the ids are made once, by
the product's own prompt builder, so that all of them see the same tokens.
"""

import gzip
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LONGEST = 1024  # tokens of one dialogue


@dataclass(frozen=True, slots=True)
class Text:
    """A dialogue. ``agent[i]`` is 1 where ``ids[i]`` is an agent's."""

    ids: list[int]
    agent: list[int]

    @property
    def places(self) -> list[int]:
        """Of the agent's tokens that have one before them."""
        return [place for place in range(1, len(self.ids)) if self.agent[place]]

    def of_agent(self, values: Sequence[float]) -> list[float]:
        """Of values for ids[1:], those of the agent's tokens."""
        return [values[place - 1] for place in self.places]


# of the agent's tokens, in order, each after everything before it
LogProbs = Callable[[Text], Sequence[float]]


def write_texts(data: Path, tokenizer: Any, count: int, target: Path) -> None:
    """The first ``count`` dialogues of ``data``, to ``target``."""
    from chatbot.prompt import encode_dialogue

    opener = gzip.open if data.suffix == ".gz" else open
    found = []
    with opener(data, "rt", encoding="utf-8") as lines:
        for line, _ in zip(lines, range(count), strict=False):
            dialogue = encode_dialogue(json.loads(line)["messages"], tokenizer, LONGEST)
            found.append(asdict(Text(dialogue.ids, dialogue.loss_mask)))
    target.write_text(json.dumps(found))


def read_texts(path: Path) -> list[Text]:
    return [Text(**item) for item in json.loads(path.read_text())]


def perplexity(texts: Sequence[Text], log_probs: LogProbs) -> float:
    """Over the agents' tokens."""
    found = [value for text in texts for value in log_probs(text)]
    return math.exp(-sum(found) / len(found))


def score_line(texts: Path, log_probs: LogProbs) -> str:
    """What a scoring program prints last."""
    read = read_texts(texts)
    tokens = sum(len(text.places) for text in read)
    return json.dumps(
        {"perplexity": round(perplexity(read, log_probs), 4), "perplexity_tokens": tokens}
    )
