"""How many tokens of a long prompt a step may compute beside replies that are being written.

A step makes every running reply wait for its prompt tokens. So they are as many as the step has
time for: with them it may take ``stretch`` times as long as without. The seconds of a step by its
rows are measured while serving, so the same setting fits any machine, model and number of replies.
Where nobody waits for a token, prompts get all that one step may hold. So do prompts that one step
can hold: most turns of a chat bring a few dozen tokens, and to delay all of them would cost more
replies than it makes smooth.
"""

from dataclasses import dataclass

from chatbot.engine.torch.draft_policy import StepCost

# a long prompt's pieces are multiples of it, or of a block where that is smaller: a block of 32
# beside 16 replies alone doubles a step
GRAIN = 16


@dataclass(frozen=True, slots=True)
class PrefillPace:
    """``most``: prompt tokens of one step in any case; ``stretch`` 0: no other bound.

    ``least`` go on in every step: no prompt starves."""

    cost: StepCost
    most: int
    stretch: float
    least: int

    def budget(self, replies: int) -> int:
        """Prompt tokens for a step that computes a token for ``replies`` replies."""
        if not replies or not self.stretch or not self.cost.known:
            return self.most
        limit = self.stretch * self.cost.seconds(replies)
        few, many = min(self.least, self.most), self.most
        if self.cost.seconds(replies + many) <= limit:
            return many
        while many - few > self.least:  # the cost rises with the rows
            middle = (few + many) // 2
            if self.cost.seconds(replies + middle) <= limit:
                few = middle
            else:
                many = middle
        return few
