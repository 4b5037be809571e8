"""The three trackers that a run can be logged to: TensorBoard, trackio and W&B, each behind the same few calls."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from throughtime.ecosystem.extras import needed

PROJECT = "throughtime"
"""The project in trackio and W&B; their own variables TRACKIO_PROJECT and WANDB_PROJECT name another."""


@dataclass(frozen=True)
class Place:
    """Of which run a tracker is told.

    run: its directory.   id: a few letters that tell it from others of its name.   config: its options.
    part: 1, and one more each time that the run left a way that a tracker had been told of; each part is a run of the
    tracker's own.
    """

    run: Path
    id: str
    config: Mapping[str, Any]
    part: int = 1

    @property
    def name(self) -> str:
        """What the tracker calls it."""
        return f"{self.run.name}-{self.id}{self.suffix}"

    @property
    def suffix(self) -> str:
        """What tells the parts apart."""
        return "" if self.part == 1 else f"-{self.part}"


class Tracker(Protocol):
    """What is told of a run, step by step, in rising order."""

    def __init__(self, place: Place) -> None: ...

    def tell(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of one step."""

    def close(self) -> None:
        """Everything is told: what is left is written."""


class TensorBoard:
    """Event files in RUN/tensorboard: `tensorboard --logdir runs` shows all runs in a folder."""

    needs = "torch.utils.tensorboard"

    def __init__(self, place: Place) -> None:
        writer = needed(self.needs, "tensorboard", "--log-to tensorboard").SummaryWriter
        self._writer = writer(os.fspath(place.run / f"tensorboard{place.suffix}"), flush_secs=5)

    def tell(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """trackio's database on this machine (TRACKIO_DIR, or its default): `trackio show --project throughtime`."""

    needs = "trackio"

    def __init__(self, place: Place) -> None:
        self._trackio = needed(self.needs, "trackio", "--log-to trackio")
        with _silent():
            self._run = self._trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=place.name, config=dict(place.config),
                resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False,
            )  # fmt: skip

    def tell(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        with _silent():
            self._trackio.finish()


class WandB:
    """Files in RUN/wandb, written offline: `wandb sync RUN/wandb/offline-run-*` sends them.

    WANDB_MODE=online sends them at once. A run that is continued adds a file of the same id: sync them in their order,
    all but the first with --append.
    """

    needs = "wandb"

    def __init__(self, place: Place) -> None:
        mode = os.environ.get("WANDB_MODE", "offline")
        if mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # offline is offline
        wandb = needed(self.needs, "wandb", "--log-to wandb")
        logging.getLogger("wandb").addHandler(logging.NullHandler())
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=place.name, id=f"{place.id}{place.suffix}",
            dir=os.fspath(place.run), config=dict(place.config), mode=mode,
            resume=None if mode == "offline" else "allow", reinit="create_new",
            settings=wandb.Settings(
                silent=True, console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True,
                disable_code=True, disable_job_creation=True,
            ),
        )  # fmt: skip

    def tell(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Any] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": WandB}
"""By the name that --log-to gives them."""


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What is printed within is not for the reader of our own output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
