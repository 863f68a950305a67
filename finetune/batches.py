"""Which samples are trained on when, and how they lie in tensors.

The order is a pure function of seed and epoch, so a resumed run goes on exactly where it stopped.
Samples of similar length share a step and so waste little on padding: groups of ``GROUP`` steps
are sorted by length, then the steps are shuffled. A step's samples are computed in micro-batches
of bounded size and their gradients added, so that memory does not depend on the longest dialogue.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chatbot.prompt import EncodedDialogue

GROUP = 8  # steps whose samples are sorted by length together


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Samples side by side, padded on the right.

    No attention mask is needed: in a causal model nothing attends to what is on its right. The
    padding's own positions are never in ``targets``, which are chosen by position, not by id.
    """

    ids: torch.Tensor  # [samples, length] int64
    where: torch.Tensor  # [samples, length] bool: the next token is to be predicted here
    targets: torch.Tensor  # [where.sum()] int64: those next tokens, row by row
    tokens: int  # without padding


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of samples per optimizer step; each sample is in one step."""
    chooser = random.Random(f"{seed}/{epoch}")
    indices = list(range(len(lengths)))
    chooser.shuffle(indices)
    steps = []
    for start in range(0, len(indices), batch_size * GROUP):
        group = sorted(
            indices[start : start + batch_size * GROUP], key=lambda i: (lengths[i], i), reverse=True
        )
        steps += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    chooser.shuffle(steps)
    return steps


def micro_batches(samples: Sequence[EncodedDialogue], max_tokens: int) -> list[MicroBatch]:
    """The samples of a step, the longest first, in micro-batches of at most ``max_tokens`` tokens
    with padding (a longer sample is alone)."""
    ordered = sorted((trim(sample) for sample in samples), key=lambda s: len(s.ids), reverse=True)
    batches: list[list[EncodedDialogue]] = []
    for sample in ordered:
        if batches and len(batches[-1][0].ids) * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(sample)
        else:
            batches.append([sample])
    return [collate(batch) for batch in batches]


def trim(sample: EncodedDialogue) -> EncodedDialogue:
    """Without what comes after the last token to learn: it would change nothing."""
    end = max((i + 1 for i, learn in enumerate(sample.loss_mask) if learn), default=0)
    return EncodedDialogue(
        sample.ids[:end], sample.loss_mask[:end], sample.spans, sample.next_message
    )


def collate(samples: Sequence[EncodedDialogue], pad_id: int = 0) -> MicroBatch:
    """Tensors of the samples. ``pad_id`` may be any id, also one that is learnt elsewhere."""
    length = max(len(sample.ids) for sample in samples)
    ids = torch.full((len(samples), length), pad_id, dtype=torch.long)
    where = torch.zeros((len(samples), length), dtype=torch.bool)
    targets: list[int] = []
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        # the first token has nothing before it from which it could be predicted
        learnt = torch.tensor(sample.loss_mask[1:], dtype=torch.bool)
        where[row, : len(learnt)] = learnt
        pairs = zip(sample.ids[1:], sample.loss_mask[1:], strict=True)
        targets += [id_ for id_, learn in pairs if learn]
    return MicroBatch(
        ids, where, torch.tensor(targets, dtype=torch.long), sum(len(s.ids) for s in samples)
    )
