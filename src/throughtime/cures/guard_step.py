"""One guarded step: the hooks that see the gradient before the optimiser does, and what is decided at its end."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from throughtime.cures.cliff import Cliff, cliff
from throughtime.cures.guard_checks import (
    GRADIENT,
    LOSS,
    OPTIMIZER,
    PARAMETER,
    Fault,
    clip_gradients,
    tensors_of,
    total_norm,
)
from throughtime.cures.guard_processes import agreed
from throughtime.errors import ConfigError
from throughtime.flow.tree import leaves

if TYPE_CHECKING:
    from throughtime.cures.guard import Guard
    from throughtime.cures.guard_report import Incident
    from throughtime.cures.guard_snapshot import Snapshot


class Step:
    """The block around one step of training; made by `Guard.step`.

    ok: whether the step counted: None while the block is open, then True, or False for one that was bad, or that a
    GradScaler left out. A block without an optimiser's step is ok if its losses are.
    incident: what happened, if it was bad.
    """

    def __init__(self, guard: Guard):
        self.guard = guard
        self.ok: bool | None = None
        self.incident: Incident | None = None
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.gradients: dict[str, Tensor] = {}
        self.carried: Any = None
        self._buffers: list[Tensor] = []
        self.checking = self.copying = self.handling = 0.0
        self._fault: Fault | None = None
        self._given: list[Tensor | float] = []
        self._loss: Callable[[], Tensor] | None = None
        self._stepped = self._scaled_away = False
        self._rates: list[tuple[dict[str, Any], Any]] = []
        self._shot: Snapshot | None = None
        self._handles: list[Any] = []
        self._began = 0.0

    # --- for the body of the block ------------------------------------------------------------------------------------

    def check(self, loss: Tensor) -> Tensor:
        """Notes a loss, to be looked at before the optimiser's step; gives it back as it is."""
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            came = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ConfigError(f"the loss must be a tensor with one number; came {came}")
        self._given.append(loss.detach())
        return loss

    def backward(self, loss: Tensor | Callable[[], Tensor], **options: Any) -> Tensor:
        """loss.backward(**options) of a checked loss, scaled where the guard has a GradScaler; gives the loss.

        loss: the loss, or a function without arguments that computes it. With a function the guard keeps the weights
        of the step before as well, and an incident comes with the picture of the loss along the last update.
        """
        if not isinstance(loss, Tensor) and callable(loss):
            self._loss = loss
            loss = loss()
        self.check(loss)
        scaler = self.guard.scaler
        (loss if scaler is None else scaler.scale(loss)).backward(**options)
        return loss

    # --- around it ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Step:
        began = self._began = perf_counter()
        self._shot = self.guard.enter(self)
        self.carried = self.guard.carry
        self._buffers = [b.detach().clone() for b in self.guard.model.buffers()]
        for optimizer in self.guard.optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._before))
            self._handles.append(optimizer.register_step_post_hook(self._after))
        self.checking += perf_counter() - began - self.copying
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        began, copied = perf_counter(), self.copying
        for handle in self._handles:
            handle.remove()
        self._restore_rates()
        self.guard.leave(self)
        if kind is not None:  # the user's own error goes on its way
            self._drop()
            if self.guard.recorder is not None:
                self.guard.recorder.clear()
            return
        if self._fault is None:
            self._look_after()
        self._part_with_snapshot()
        end = perf_counter()
        self.checking += end - began - (self.copying - copied)
        self._end(end)

    def _end(self, began: float) -> None:
        guard = self.guard
        try:
            if self._fault is not None:
                self.ok = False
                self.incident = guard.incident(self, self._fault)
            elif self._stepped:
                self.ok = True
                guard.good()
            else:
                self.ok = not self._scaled_away
        finally:
            end = perf_counter()
            self.handling = end - began if self._fault is not None else 0.0
            guard.spent(self, end - self._began)
            if self.ok is False or self._stepped:
                guard.iteration += 1
                guard.used()
            self.gradients = {}

    # --- at the optimiser's step --------------------------------------------------------------------------------------

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not any(callable(a) for a in (*args, *kwargs.values())):
            self._look_before(optimizer)
            return None
        # A closure computes the gradient within the step: it is looked at behind it, before the weights move.
        given = [self._looked_at(a, optimizer) for a in args]
        return tuple(given), {name: self._looked_at(a, optimizer) for name, a in kwargs.items()}

    def _looked_at(self, argument: Any, optimizer: Optimizer) -> Any:
        def closure() -> Any:
            self._restore_rates()  # an optimiser may call it more than once
            result = argument()
            self._look_before(optimizer)
            return result

        return closure if callable(argument) else argument

    def _look_before(self, optimizer: Optimizer) -> None:
        began = perf_counter()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self._fault is None and not self._fused_skip(optimizer):
            self._judge(optimizer, parameters)
        if self._fault is not None:
            # Without a gradient the optimiser leaves a parameter, and all it keeps of it, alone.
            self.gradients.update(self._named(parameters))
            for p in parameters:
                p.grad = None
        self._stepped = self._stepped or not self._scaled_away
        self.checking += perf_counter() - began

    def _judge(self, optimizer: Optimizer, parameters: list[Tensor]) -> None:
        guard = self.guard
        norm = total_norm(p.grad for p in parameters if p.grad is not None)
        scale = getattr(optimizer, "grad_scale", None)  # a fused optimiser gets its gradient scaled still
        norm = norm if scale is None else norm / float(scale)
        fault = self._look_at_losses() or guard.limits[GRADIENT].fault(norm)
        if fault is None and self._shot is not None:  # an infinite weight may saturate a gate and do no other harm
            fault = guard.limits[PARAMETER].fault(total_norm(tensors_of(guard.model))) or self._look_at_state()
        self._fault = agreed(fault, guard.model)
        if self._fault is not None:
            return
        if not self.norms:
            self._accept_losses()
        guard.limits[GRADIENT].accept(norm)
        self.norms.append(norm)
        if self._shot is not None:
            self._finish_snapshot()
        if self._loss is not None:
            guard.note_weights()
        if guard.clip is not None:
            clip_gradients(parameters, norm, guard.clip)
        if guard.factor != 1.0:
            for group in optimizer.param_groups:
                if "lr" in group:
                    self._rates.append((group, group["lr"]))
                    group["lr"] = group["lr"] * guard.factor

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._restore_rates()

    def _restore_rates(self) -> None:
        for group, rate in self._rates:
            group["lr"] = rate
        self._rates.clear()

    def _fused_skip(self, optimizer: Optimizer) -> bool:
        found = getattr(optimizer, "found_inf", None)
        self._scaled_away = found is not None and bool(found)
        return self._scaled_away

    def _finish_snapshot(self) -> None:
        began = perf_counter()
        shot, self._shot = self._shot, None
        assert shot is not None
        shot.finish()
        spent = perf_counter() - began
        self.copying += spent
        self.checking -= spent
        self.guard.keep(shot, self.copying)

    def _part_with_snapshot(self) -> None:
        if self._shot is not None and self._fault is None and not self._scaled_away:
            self.guard.put_off(self._shot)
            self._shot = None
        self._drop()

    def _drop(self) -> None:
        if self._shot is not None:
            self.guard.drop(self._shot)
            self._shot = None

    # --- what is looked at --------------------------------------------------------------------------------------------

    def _look_at_losses(self) -> Fault | None:
        self.losses += [float(v) for v in self._given]
        self._given.clear()
        faults = (self.guard.limits[LOSS].fault(v) for v in self.losses)
        return next((f for f in faults if f is not None), None)

    def _accept_losses(self) -> None:
        for loss in self.losses:
            self.guard.limits[LOSS].accept(loss)

    def _look_at_state(self) -> Fault | None:
        kept = [v for o in self.guard.optimizers for v in leaves(list(o.state.values())) if v.is_floating_point()]
        norm = total_norm(kept)
        return None if math.isfinite(norm) else Fault(OPTIMIZER, norm)

    def _look_after(self) -> None:
        # After the optimiser's step the weights; without one the losses, and whether a GradScaler left it out.
        guard = self.guard
        norm = total_norm(tensors_of(guard.model)) if self._stepped else 0.0
        fault = guard.limits[PARAMETER].fault(norm) if self._stepped else self._look_at_losses()
        if not self._stepped and fault is None:
            self._scaled_away = self._scaled_away or (guard.scaler is not None and self._gradient_bad())
            fault = guard.scaler_skipped() if self._scaled_away else None
        self._fault = agreed(fault, guard.model)
        if self._fault is not None:
            if not self._stepped:
                self.gradients.update(self._named(list(guard.model.parameters())))
        elif self._stepped:
            guard.limits[PARAMETER].accept(norm)
        elif not self._scaled_away:
            self._accept_losses()

    def _gradient_bad(self) -> bool:
        return not math.isfinite(total_norm(p.grad for p in self.guard.model.parameters() if p.grad is not None))

    def _named(self, parameters: list[Tensor]) -> dict[str, Tensor]:
        names = {p: n for n, p in self.guard.model.named_parameters()}
        return {names[p]: p.grad for p in parameters if p in names and p.grad is not None}  # type: ignore[index]

    @torch.no_grad()
    def undo(self) -> None:
        """Puts back what the forward pass of a skipped step changed: the buffers, and what is carried."""
        for b, kept in zip(self.guard.model.buffers(), self._buffers, strict=True):
            b.copy_(kept)
        self.guard.carry = self.carried

    def picture(self, bad_weights: list[str]) -> Cliff | None:
        """The loss along the last update, where the loss was given as a function and the weights are good."""
        before = self.guard.weights_before
        if self._loss is None or before is None or bad_weights:
            return None
        if not any(not torch.equal(v, p) for v, p in zip(before, self.guard.model.parameters(), strict=True)):
            return None
        try:
            found = cliff(self.guard.model, self._loss, before)
        except Exception:  # the picture is a help; the user's loss function may not bear being called again
            return None
        return found if bool(found.loss.isfinite().any()) else None
