"""Guard: around any training loop, so that no run dies of NaN: it checks, skips, goes back, lowers, and says why."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from throughtime.cures.cliff import Cliff, cliff
from throughtime.cures.flight import INPUT, UPDATE, FlightRecord
from throughtime.cures.flight_calls import CallRecorder
from throughtime.cures.flight_locate import locate
from throughtime.cures.flight_weights import Taken, of_optimizer, of_weights, with_picture
from throughtime.cures.guard_arguments import check_cadence, check_clip, optimizers_of, stateful_of
from throughtime.cures.guard_batches import Batches
from throughtime.cures.guard_checks import GRADIENT, LOSS, OPTIMIZER, PARAMETER, VALIDATION, Fault, Limit, broken
from throughtime.cures.guard_processes import device_of, most
from throughtime.cures.guard_report import GuardCost, Incident, stopped
from throughtime.cures.guard_rule import BACK, SKIP, STOP, Rule
from throughtime.cures.guard_snapshot import Parts, Snapshot
from throughtime.cures.guard_step import Step
from throughtime.errors import ConfigError, GuardStopped

log = logging.getLogger("throughtime.guard")
KEPT = 2  # good snapshots
SCALER_SKIPS = 10  # in a row that are left to a GradScaler
AT_LEAST, AT_MOST = 10, 1000  # steps between snapshots, where their cost chooses


class Guard:
    """Guards a training loop against NaN, infinity and explosions; a healthy run it leaves number for number as it is.

        guard = tt.Guard(model, optimizer)
        for x, y in guard.batches(loader):
            with guard.step() as step:
                optimizer.zero_grad()
                step.backward(loss_of(model(x), y))
                optimizer.step()

    Looked at are the losses (given to `step.backward` or `step.check`), the norm of the gradient as the optimiser gets
    it, and the norm of the weights after its step. Each is bad if it is not finite, or larger than `explode` times the
    largest good one so far, from the eleventh on. With each snapshot what the optimiser keeps is looked at as well;
    that is bad if it is not finite. The optimiser then sees no gradient, so that its step moves nothing;
    the rest of the block runs on; at its end the flight recorder runs the step again to name place and cause, and
    `throughtime.cures.guard_rule.Rule` says what is done: skip, go back and take shorter steps, or stop.

    optimizer:   a torch optimiser, or several; `step(closure)` as well. L-BFGS, which calls it many times, is refused.
    scheduler:   what is to go back as well, one or several; anything with state_dict and load_state_dict.
    scaler:      a torch.amp.GradScaler. The steps that it skips itself are left to it, unless it skips more than ten
                 in a row.
    data:        anything with state_dict and load_state_dict that knows the position in the data, and goes back to
                 it. Otherwise `guard.batches(loader)` keeps the batches that may be wanted again; without either the
                 data simply go on.
    every:       steps between snapshots; None: as many as keep their cost below `share` of the time, from 10 to 1000.
    explode:     see above; None: only what is not finite is bad.
    clip:        the gradient's norm is clipped at this from the start; None: not before an explosion.
    tries, lower, calm: the rule's, see there.
    record:      whether the flight recorder is on. It holds on to the arguments of the model's calls, and to the
                 gradients of what they returned, until the end of the step.
    on_incident: is called with every `Incident`; each is also logged as a warning of the logger "throughtime.guard".

    Between two blocks nothing of the guard is on the model or the optimiser. The learning rate that it lowers is
    lowered during the optimiser's step alone, so that every schedule goes on as it was written: see `factor`.
    Raises ConfigError for arguments that make no sense; the end of a block raises `GuardStopped`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        scheduler: Any = None,
        scaler: Any = None,
        data: Any = None,
        every: int | None = None,
        share: float = 0.01,
        explode: float | None = 100.0,
        clip: float | None = None,
        tries: int = 5,
        lower: float = 0.5,
        calm: int = 100,
        record: bool = True,
        on_incident: Callable[[Incident], None] | None = None,
    ) -> None:
        self.model, self.optimizers = model, optimizers_of(model, optimizer)
        self.scaler, self.on_incident = scaler, on_incident
        check_cadence(every, share)
        check_clip(clip)
        self.every, self.share = AT_LEAST if every is None else every, share
        self._fixed = every is not None
        self.clip, self.factor = clip, 1.0
        self.rule = Rule(tries, lower, calm)
        self.limits = {what: Limit(what, explode) for what in (LOSS, GRADIENT, PARAMETER)}
        self.incidents: list[Incident] = []
        self.iteration = 0
        self.carry: Any = None
        self._batches = Batches(())
        self.recorder = CallRecorder(model) if record else None
        self.parts = Parts(model, self.optimizers, [*stateful_of(scheduler, scaler, data), self._batches])
        self.snapshots: list[Snapshot] = []  # good ones, the newest last
        self._returned: set[int] = set()  # those of them that were gone back to, by iteration
        self._spare: list[Snapshot] = []
        self._begun: Snapshot | None = None  # one that waits for the optimiser's step, over the blocks up to it
        self._since = 0  # good steps since the newest
        self.weights_before: list[Tensor] | None = None  # of the last update, where a picture of it may be wanted
        self._open: Step | None = None
        self._scaler_skips = 0
        self._times: dict[str, list[float]] = {"step": [], "copy": []}
        self._sums = {"total": 0.0, "checks": 0.0, "copies": 0.0, "incidents": 0.0}
        self._taken = self._steps = 0

    # --- around the loop ----------------------------------------------------------------------------------------------

    def step(self) -> Step:
        """The block around one step of training, to be entered with `with`.

        It may hold several forward and backward passes (accumulation), and the optimiser's step. A block without an
        optimiser's step is a part of the next one.
        """
        return Step(self)

    def batches(self, loader: Iterable[Any]) -> Batches:
        """The loader, with a position that the guard goes back to; see `throughtime.cures.guard_batches.Batches`."""
        self._batches.loader = loader
        return self._batches

    def snapshot(self) -> None:
        """Takes a snapshot now, whatever the cadence. The weights must be good."""
        bad = broken(self.model)
        if bad:
            raise ConfigError(f"no snapshot of bad weights: {bad[0]} holds NaN or infinity")
        began = perf_counter()
        shot = self._new_snapshot()
        shot.take(self.iteration, self.carry)
        self.keep(shot, perf_counter() - began)

    @property
    def can_go_back(self) -> bool:
        """Whether there is a good snapshot."""
        return bool(self.snapshots)

    def go_back(self) -> int:
        """Puts everything back to the newest good snapshot; gives the iteration at the start of whose step that is.

        Called again before a newer one was taken it goes back to the one before. Raises ConfigError without one.
        """
        if not self.snapshots:
            raise ConfigError("there is no good snapshot yet to go back to; one is taken at the first good step")
        if self.snapshots[-1].iteration in self._returned and len(self.snapshots) > 1:
            self._spare.append(self.snapshots.pop())
        shot = self.snapshots[-1]
        self._returned.add(shot.iteration)
        self.carry = shot.restore()
        self._since, self.weights_before = 0, None
        self._forget_begun()
        return shot.iteration

    def cliff(self, loss: Callable[[], Tensor | float], **options: Any) -> Cliff:
        """The loss along the way from the newest good snapshot to the weights as they are; see `cures.cliff.cliff`."""
        if not self.snapshots:
            raise ConfigError("there is no good snapshot yet; the picture needs one to begin at")
        return cliff(self.model, loss, self.snapshots[-1].weights, **options)

    @property
    def cost(self) -> GuardCost:
        """What guarding cost so far."""
        return GuardCost(self._steps, **self._sums, snapshots=self._taken, every=self.every)

    def state_dict(self) -> dict[str, Any]:
        """What the guard has learnt, for resuming: numbers only. The snapshots are not in it; a new one is taken."""
        return {
            "iteration": self.iteration,
            "factor": self.factor,
            "clip": self.clip,
            "every": self.every,
            "rule": self.rule.state_dict(),
            "limits": {n: {"largest": v.largest, "seen": v.seen} for n, v in self.limits.items()},
            "incidents": [i.to_dict() for i in self.incidents],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave; raises ConfigError for anything else."""
        try:
            self.rule.load_state_dict(state["rule"])
            for name, limit in self.limits.items():
                limit.largest, limit.seen = float(state["limits"][name]["largest"]), int(state["limits"][name]["seen"])
            self.iteration, self.factor, self.clip = int(state["iteration"]), float(state["factor"]), state["clip"]
            if self.clip is not None and not (isinstance(self.clip, int | float) and self.clip > 0):
                raise ValueError(f"clip {self.clip!r}")
            self.every = self.every if self._fixed else int(state["every"])
            self.incidents = [Incident.from_dict(i) for i in state["incidents"]]
        except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise ConfigError(f"expected what Guard.state_dict gives; {type(error).__name__}: {error}") from None
        self._spare += self.snapshots
        self.snapshots = []
        self._forget_begun()

    # --- what a Step calls --------------------------------------------------------------------------------------------

    def enter(self, step: Step) -> Snapshot | None:
        """A block begins; gives the snapshot that was begun, if it is time for one."""
        if self._open is not None:
            raise ConfigError("a guarded step is open already; leave its with block before the next one begins")
        self._open = step
        if self.recorder is not None:
            self.recorder.open()
        if self._begun is not None:
            shot, self._begun = self._begun, None
            return shot
        if self.snapshots and self._since < self.every:
            return None
        began = perf_counter()
        shot = self._new_snapshot()
        shot.begin(self.iteration, self.carry)
        step.copying += perf_counter() - began
        return shot

    def leave(self, step: Step) -> None:
        """A block is left, also by an error."""
        self._open = None
        if self.recorder is not None:
            self.recorder.close()

    def keep(self, shot: Snapshot, seconds: float) -> None:
        """A snapshot proved good."""
        self.snapshots.append(shot)
        self._returned.discard(shot.iteration)
        while len(self.snapshots) > KEPT:
            self._spare.append(self.snapshots.pop(0))
        self._since, self._taken = 0, self._taken + 1
        self._batches.forget(self.snapshots[0].stateful[-1]["position"])
        self._times["copy"] = [*self._times["copy"][-8:], seconds]
        if not self._fixed and self._times["step"]:
            copy, one = statistics.median(self._times["copy"]), statistics.median(self._times["step"])
            wanted = math.ceil(copy / (self.share * one)) if one > 0 else AT_MOST
            # All processes take theirs at the same steps.
            self.every = most(min(max(wanted, AT_LEAST), AT_MOST), device_of(self.model))

    def put_off(self, shot: Snapshot) -> None:
        """A block ended well and without an optimiser's step: its snapshot is finished in a later one."""
        self._begun = shot

    def note_weights(self) -> None:
        """Copies the weights before an update."""
        now = [p.detach() for p in self.model.parameters()]
        if self.weights_before is None:
            self.weights_before = [v.clone() for v in now]
        else:
            for kept, v in zip(self.weights_before, now, strict=True):
                kept.copy_(v)

    def drop(self, shot: Snapshot) -> None:
        """A snapshot was not finished, or not good."""
        self._spare.append(shot)

    def good(self) -> None:
        """A block with an optimiser's step ended well."""
        self.rule.good()
        self._since += 1
        self._scaler_skips = 0
        if self.recorder is not None:
            self.recorder.clear()

    def used(self) -> None:
        """The step is done with its batches, well or not."""
        self._batches.used()

    def scaler_skipped(self) -> Fault | None:
        """The GradScaler left out a step, as it should now and then; too many in a row are a fault."""
        self._scaler_skips += 1
        if self._scaler_skips > SCALER_SKIPS:
            return Fault(GRADIENT, math.nan)
        if self.recorder is not None:
            self.recorder.clear()
        return None

    def spent(self, step: Step, total: float) -> None:
        """Adds the times of a block to the cost."""
        self._steps += 1
        for name, seconds in (("total", total), ("checks", step.checking), ("copies", step.copying)):
            self._sums[name] += seconds
        self._sums["incidents"] += step.handling
        self._times["step"] = [*self._times["step"][-32:], total - step.copying - step.handling]

    def incident(self, step: Step, fault: Fault) -> Incident:
        """Acts on a bad step by the rule, and tells; raises GuardStopped where the rule is at its end."""
        held = dict(self.model.named_parameters())
        bad_parameters = [n for n in broken(self.model) if n in held]
        record = self._record(step, fault, bad_parameters)
        picture = step.picture(bad_parameters)
        if record is not None and picture is not None:
            record = with_picture(record, picture)
        cause = None if record is None else record.cause
        good_weights = not bad_parameters and fault.what not in (PARAMETER, OPTIMIZER, VALIDATION) and cause != UPDATE
        input_bad = good_weights and (cause == INPUT or self.knows_as_bad(step))
        action = self.rule.decide(weights_good=good_weights, bad_input=input_bad)
        # Of several processes all do the same: what goes furthest.
        action = (SKIP, BACK, STOP)[most((SKIP, BACK, STOP).index(action), device_of(self.model))]
        if action == BACK and not self.can_go_back:
            action = STOP
        self.rule.bad(action)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self.recorder is not None:
            self.recorder.clear()
        back_to = None
        if action == SKIP:
            step.undo()
        elif self.can_go_back:
            back_to = self.go_back()
        if action == BACK:
            self._lower(fault)
        found = Incident(self.iteration, str(fault), action, record, back_to, self.factor, self.clip, picture)
        self._tell(found)
        if action == STOP:
            raise GuardStopped(stopped(found, self.incidents[-(self.rule.tries + 2) : -1]))
        return found

    def knows_as_bad(self, step: Step) -> bool:
        """Whether the batches of a bad step are known to be its cause, whatever the flight recorder finds."""
        return False

    def _record(self, step: Step, fault: Fault, bad_parameters: list[str]) -> FlightRecord | None:
        if self.recorder is None or fault.what == VALIDATION:
            return None
        calls = self.recorder.calls
        if fault.what == OPTIMIZER:
            return of_optimizer(self.iteration, self.model, self.optimizers)
        if fault.what == PARAMETER and step.norms:
            rate = max((float(g["lr"]) for o in self.optimizers for g in o.param_groups if "lr" in g), default=math.nan)
            taken = Taken(rate * self.factor, max(step.norms, default=math.nan))
            found = of_weights(self.iteration, self.model, self.optimizers, taken)
            if found.cause == UPDATE or not bad_parameters:
                return found
        return locate(self.iteration, fault, self.model, calls, step.losses, step.gradients)

    def _lower(self, fault: Fault) -> None:
        self.factor *= self.rule.lower
        if fault.what == GRADIENT and fault.exploded:
            largest = self.limits["gradient"].largest
            self.clip = largest if self.clip is None or self.clip > largest else self.clip / 2

    def _tell(self, found: Incident) -> None:
        self.incidents.append(found)
        log.warning("%s", found)
        if self.on_incident is not None:
            self.on_incident(found)

    def _forget_begun(self) -> None:
        if self._begun is not None:
            self.drop(self._begun)
            self._begun = None

    def _new_snapshot(self) -> Snapshot:
        return self._spare.pop() if self._spare else Snapshot(self.parts)
