"""The hooks by which the watch, the guard and the clips follow Lightning's loop: our half of its callbacks."""

from __future__ import annotations

import os
from typing import Any

from throughtime.cures.clip import Clipper, ClipRecord
from throughtime.cures.guard_report import Incident
from throughtime.diagnosis.history import Record
from throughtime.ecosystem.clipping import Clipping, as_numbers
from throughtime.ecosystem.guarding import Guarding
from throughtime.ecosystem.watching import Watching
from throughtime.errors import ConfigError

_SHARDED = ("FSDP", "DeepSpeed", "ModelParallel", "XLA")


class WatchHooks:
    """`throughtime.watch` as a callback: measures the gradient through time while Lightning trains.

        watch = tt.lightning.Watch(budget=0.02, path="watch.jsonl")
        Trainer(callbacks=[watch]).fit(module, data)
        print(watch); print(watch.diagnosis())

    budget, path: as of `throughtime.watch`. A continued training writes to watch-2.jsonl, and so on.
    log: whether the horizons (steps) and half-lives go to the trainer's loggers as well, at the step of each record.

    The training computes the same numbers, bit for bit. With several processes the one of rank 0 is watched.
    """

    def __init__(self, budget: float = 0.02, path: str | os.PathLike[str] | None = None, *, log: bool = True) -> None:
        super().__init__()
        self.watching, self.log = Watching(budget, path), log

    @property
    def state_key(self) -> str:
        """Under which the state is kept in Lightning's checkpoints."""
        return "throughtime.Watch"

    @property
    def history(self) -> list[Record]:
        """The records, oldest first."""
        return self.watching.history

    def diagnosis(self, **options: Any) -> Any:
        """What the last measured step means; options as of `throughtime.diagnosis.from_capture`."""
        return self.watching.diagnosis(**options)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.watching.start(pl_module)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        numbers = self.watching.news()
        if numbers and self.log:
            _log(trainer, numbers)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.watching.stop()
        self.on_train_batch_end(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.watching.stop()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self.watching.stop()

    def state_dict(self) -> dict[str, Any]:
        return self.watching.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.watching.load_state_dict(state_dict)

    def __str__(self) -> str:
        return str(self.watching)


class GuardHooks:
    """`throughtime.Guard` as a callback: no run of Lightning dies of NaN.

        guard = tt.lightning.Guard()
        Trainer(callbacks=[guard]).fit(module, data)
        print(guard.incidents)

    options: every, share, explode, clip, tries, lower, calm, record, on_incident, as of `throughtime.Guard`.

    A batch is a step of the guard; with accumulated gradients, those up to the optimiser's step are one. Losses are
    seen in automatic optimisation, and in `manual_backward`. Schedules of Lightning go back with the weights; its
    counters and its data go on. Raises ConfigError where a strategy shards the weights, and GuardStopped, out of
    `fit`, where the guard is at its end.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.guarding = Guarding(options)

    @property
    def state_key(self) -> str:
        """Under which the state is kept in Lightning's checkpoints."""
        return "throughtime.Guard"

    @property
    def guard(self) -> Any:
        """The `throughtime.Guard`; None before training begins."""
        return self.guarding.guard

    @property
    def incidents(self) -> list[Incident]:
        """What happened so far, oldest first."""
        return self.guarding.incidents

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        _whole_weights(trainer, "the guard")
        schedulers = [found.scheduler for found in trainer.lr_scheduler_configs]
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.guarding.start(pl_module, trainer.optimizers, schedulers, self._scaler)
        if trainer.world_size > 1 and self.guarding.guard is not None and self.guarding.guard.recorder is not None:
            self.guarding.guard.recorder.parts_only()  # the module itself is called with other arguments there

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.guarding.begin()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        self.guarding.check(loss if self._scaler is None else loss.detach() / self._scaler.get_scale())

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.guarding.end()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.guarding.leave()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.guarding.leave(exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self.guarding.leave()

    def state_dict(self) -> dict[str, Any]:
        return self.guarding.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.guarding.load_state_dict(state_dict)


class ClipHooks:
    """A clipper of `throughtime.cures` as a callback, adaptive ones with what they learn.

        Trainer(callbacks=[tt.lightning.Clip(tt.cures.ZClip())])

    It acts before Lightning's own `gradient_clip_val`. Several optimisers get a copy each. Beside a guard, or a
    GradScaler, a gradient that is not finite is left to that one; otherwise the clipper's `nonfinite` says.
    log: whether norm and threshold go to the trainer's loggers, every `log_every_n_steps`.
    """

    def __init__(self, clipper: Clipper, *, log: bool = True) -> None:
        super().__init__()
        self.clipping, self.log = Clipping(clipper), log

    @property
    def state_key(self) -> str:
        """Under which the state is kept in Lightning's checkpoints."""
        return "throughtime.Clip"

    @property
    def record(self) -> ClipRecord:
        """What was done; of several optimisers, to the first."""
        return self.clipping.clippers[0].record

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        _whole_weights(trainer, "clipping")
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)
        if self._scaler is not None and any(getattr(o, "_step_supports_amp_scaling", 0) for o in trainer.optimizers):
            raise ConfigError(
                "a fused optimiser under 16-mixed gets its gradients scaled still, and they cannot be clipped; make it "
                "with fused=False, or train with bf16-mixed"
            )
        self._leave = self._scaler is not None or any(isinstance(c, GuardHooks) for c in trainer.callbacks)
        self.clipping.start(len(trainer.optimizers))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        number = next(n for n, known in enumerate(trainer.optimizers) if known is optimizer)
        step = self.clipping.clip(optimizer, number, leave=self._leave)
        if self.log and number == 0 and (trainer.global_step + 1) % trainer.log_every_n_steps == 0:
            _log(trainer, as_numbers(step))

    def state_dict(self) -> dict[str, Any]:
        return self.clipping.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.clipping.load_state_dict(state_dict)


def _whole_weights(trainer: Any, who: str) -> None:
    name = type(trainer.strategy).__name__
    if any(word in name for word in _SHARDED):
        raise ConfigError(
            f"{who} needs the whole weights and gradients in each process, and {name} does not keep them so; use the "
            'strategy "auto" or "ddp"'
        )


def _log(trainer: Any, numbers: dict[str, float]) -> None:
    """To the loggers, at the step under which Lightning logs its own numbers."""
    step: int = trainer.fit_loop.epoch_loop._batches_that_stepped
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=step)
