"""How far a training run is, in words. Pure."""

from ui.answers import Run

PHASES = {
    "prepare": "Preparing the data",
    "train": "Learning from the dialogues",
    "evaluate": "Writing the report",
    "publish": "Storing the version",
}


def doing(run: Run) -> str:
    """What it does now, as a heading; not Markdown."""
    if run.state == "queued":
        return "Waiting for the trainer"
    return PHASES.get(run.phase, run.phase or "Starting")


def share_of(run: Run) -> float:
    """What is done of the phase's steps, 0 to 1."""
    return min(1.0, run.step / run.total_steps) if run.total_steps else 0.0


def steps_of(run: Run) -> str:
    """ "Step 36 of 176"; while the steps are not known yet, or not counted, what goes on."""
    if run.total_steps:
        return f"Step {run.step:,} of {run.total_steps:,}"
    return doing(run) if run.phase in ("evaluate", "publish") else "Starting"
