"""The hooks by which the watch, the guard and the clips follow the Hugging Face Trainer: our half of its callbacks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cures.clip import Clipper, ClipRecord
from throughtime.cures.guard_report import Incident
from throughtime.diagnosis.history import Record
from throughtime.ecosystem.clipping import Clipping, as_numbers
from throughtime.ecosystem.guarding import Guarding, is_guarded
from throughtime.ecosystem.watching import Watching
from throughtime.errors import ConfigError


class _Kept:
    """What is to be there again after `train(resume_from_checkpoint=...)` lies in the trainer's own state, which it
    saves with each of its checkpoints as JSON."""

    _key: str
    _kept: Any

    def _restore(self, state: Any) -> None:
        found = state.stateful_callbacks.get(self._key) if state.global_step else None
        if found:
            self._kept.load_state_dict(found["attributes"])

    def _note(self, state: Any, control: Any) -> None:
        if control.should_save or control.should_training_stop:
            state.stateful_callbacks[self._key] = {"args": {}, "attributes": self._kept.state_dict()}


class WatchHooks(_Kept):
    """`throughtime.watch` as a callback: measures the gradient through time while the Hugging Face Trainer trains.

        watch = tt.transformers.Watch(budget=0.02, path="watch.jsonl")
        Trainer(model, args, train_dataset=data, callbacks=[watch]).train()
        print(watch); print(watch.diagnosis())

    budget, path: as of `throughtime.watch`. A continued training writes to watch-2.jsonl, and so on.
    log: whether horizons (steps) and half-lives go to `trainer.state.log_history` as well.

    The training computes the same numbers, bit for bit. With several processes the one of rank 0 is watched. The
    Trainer tells its callbacks nothing of an error; after one call `close`, or train again.
    """

    _key = "throughtime.Watch"

    def __init__(self, budget: float = 0.02, path: str | os.PathLike[str] | None = None, *, log: bool = True) -> None:
        super().__init__()
        self.watching = self._kept = Watching(budget, path)
        self.log = log

    @property
    def history(self) -> list[Record]:
        """The records, oldest first."""
        return self.watching.history

    def diagnosis(self, **options: Any) -> Any:
        """What the last measured step means; options as of `throughtime.diagnosis.from_capture`."""
        return self.watching.diagnosis(**options)

    def close(self) -> None:
        """Ends the watch where an error ended the training."""
        self.watching.stop()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self._restore(state)
        self.watching.start(model)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        numbers = self.watching.news()
        if numbers and self.log:
            state.log_history.append({**numbers, "epoch": state.epoch, "step": state.global_step})
        self._note(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._note(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.watching.stop()
        self.on_step_end(args, state, control)

    def __str__(self) -> str:
        return str(self.watching)


class GuardHooks(_Kept):
    """`throughtime.Guard` as a callback: no run of the Hugging Face Trainer dies of NaN.

        guard = tt.transformers.Guard()
        Trainer(model, args, train_dataset=data, callbacks=[guard]).train()
        print(guard.incidents)

    options: every, share, explode, clip, tries, lower, calm, record, on_incident, as of `throughtime.Guard`.

    A step of the optimiser, with all batches that are gathered for it, is a step of the guard. A callback cannot call
    a step off; this one takes the gradients away as torch's optimiser begins its step (a hook of torch's own), so that
    it moves nothing. The loss is looked at where the model gives one ("loss", or the first of what it returns); the
    gradient always, after the Trainer's own `max_grad_norm`. The schedule goes back with the weights; `global_step`
    and the data go on. Raises ConfigError under FSDP and DeepSpeed, and GuardStopped, out of `train`, at its end.
    The Trainer tells its callbacks nothing of an error; after one call `close`, or train again.
    """

    _key = "throughtime.Guard"

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.guarding = self._kept = Guarding(options)
        self._hook: Any = None

    @property
    def guard(self) -> Any:
        """The `throughtime.Guard`; None before training begins."""
        return self.guarding.guard

    @property
    def incidents(self) -> list[Incident]:
        """What happened so far, oldest first."""
        return self.guarding.incidents

    def close(self) -> None:
        """Takes everything off where an error ended the training."""
        self._unhook()
        self.guarding.leave()

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, lr_scheduler: Any = None,
        **_: Any,
    ) -> None:  # fmt: skip
        _whole_weights(args, "the guard")
        self.close()
        self._restore(state)
        inner = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper holds torch's
        schedulers = [] if lr_scheduler is None else [lr_scheduler]
        self._model: nn.Module = model
        self.guarding.start(model, [inner], schedulers, getattr(optimizer, "scaler", None))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._unhook()
        self.guarding.begin()
        self._hook = self._model.register_forward_hook(self._came_out)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._unhook()
        self.guarding.end()
        self._note(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._note(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.close()
        self._note(state, control)

    def _came_out(self, model: nn.Module, given: Any, returned: Any) -> None:
        loss = _loss_in(returned) if torch.is_grad_enabled() else None
        if loss is not None and loss.requires_grad:
            self.guarding.check(loss)

    def _unhook(self) -> None:
        hook, self._hook = self._hook, None
        if hook is not None:
            hook.remove()


class ClipHooks(_Kept):
    """A clipper of `throughtime.cures` as a callback, adaptive ones with what they learn.

        args = TrainingArguments(..., max_grad_norm=0)
        Trainer(model, args, train_dataset=data, callbacks=[tt.transformers.Clip(tt.cures.ZClip())])

    The Trainer's own clipping, at 1.0 unless it is told otherwise, comes first and would hide from it what it is to
    learn from: ConfigError unless it is off. Beside a guard, a gradient that is not finite is left to that one;
    otherwise the clipper's `nonfinite` says.
    log: whether norm and threshold go to `trainer.state.log_history`, every `logging_steps`.
    """

    _key = "throughtime.Clip"

    def __init__(self, clipper: Clipper, *, log: bool = True) -> None:
        super().__init__()
        self.clipping = self._kept = Clipping(clipper)
        self.log = log

    @property
    def record(self) -> ClipRecord:
        """What was done."""
        return self.clipping.clippers[0].record

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        _whole_weights(args, "clipping")
        if args.max_grad_norm:
            raise ConfigError(
                f"the Trainer itself clips at max_grad_norm={args.max_grad_norm:g}, before this callback sees the "
                "gradient; switch that off with TrainingArguments(max_grad_norm=0)"
            )
        if getattr(optimizer, "scaler", None) is not None:
            raise ConfigError(
                "fp16 scales the gradients, and without max_grad_norm the Trainer scales them back only within the "
                "optimiser's step; train with bf16 to clip them here"
            )
        self._restore(state)
        self.clipping.start(1)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        step = self.clipping.clip(optimizer, leave=is_guarded(optimizer))
        if self.log and (state.global_step + 1) % max(int(state.logging_steps or 1), 1) == 0:
            state.log_history.append({**as_numbers(step), "epoch": state.epoch, "step": state.global_step + 1})

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._note(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._note(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._note(state, control)


def _loss_in(returned: Any) -> Tensor | None:
    """The loss in what a model returns: named "loss", or the first of several, where that is one number."""
    if isinstance(returned, Mapping):
        found = returned.get("loss")
    else:
        found = returned[0] if isinstance(returned, tuple | list) and returned else returned
    return found if isinstance(found, Tensor) and found.numel() == 1 else None


def _whole_weights(args: Any, who: str) -> None:
    if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
        raise ConfigError(
            f"{who} needs the whole weights and gradients in each process, and FSDP and DeepSpeed do not keep them so; "
            "train without them, on one device or with several processes"
        )
