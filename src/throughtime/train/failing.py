"""What is said when a run cannot go on: what broke, at which step, and from where smaller steps may help."""

from __future__ import annotations

from throughtime.train import checkpoint as checkpoints
from throughtime.train.rundir import Run
from throughtime.train.session import Session


def before(run: Run, session: Session) -> int | None:
    """The newest checkpoint of weights that a step went well from; None if there is none.

    A checkpoint of the very weights that gave a NaN is no use: the same step would fail in the same way.
    """
    steps = [s for s in checkpoints.steps_in(run.checkpoints) if s < session.step]
    return steps[-1] if steps else None


def what_to_do(run: Run, session: Session, good: int | None, factor: float = 1.0) -> str:
    """The way out, from the good checkpoint; `factor` is what the learning rate was multiplied by already."""
    config = session.config
    if good is None:
        return (
            "with the weights that the run began with: start another run, with another --seed, a smaller --window, or "
            f"a cell other than {config.cell}"
        )
    name = checkpoints.step_name(good)
    clip = config.clip_norm / 2 or 1.0
    command = run.resume_command(f"--checkpoint {name} --lr {config.lr * factor / 2:g} --clip-norm {clip:g}")
    return f"the last good checkpoint is {run.checkpoints / name}; continue from it with smaller steps: {command}"
