"""Fault injection: NaN and infinity planted at random places of small runs under the guard, and what it made of them.

    python -m benchmarks.fault_injection                 # 200 plants over all kinds of layers
    python -m benchmarks.fault_injection --plants 40 --seed 1 --verbose

One plant is one run of eight steps. At a random step a number of the input, of a weight, of a gradient (by a hook on
the output of the recurrence, or on a weight) or of the loss becomes NaN or infinite; or the recurrent weights become
so large, with the states at rest, that the gradient explodes; or the learning rate is far too high from the start.
A plant is "right" if the guard tells of it at that very step, with the right cause, direction, module, time step and
sample (layer and gate too, for weights of recurrent layers), of nothing else, and if the run then goes on to its end
with good weights. The place of an explosion is that of the equations, written out once more in float64. For a learning
rate there is no one place: every record that names a time step of an overflow or an explosion is compared with those
equations, where they are written out.

"harmless": the number was masked (by ReLU), so that loss, gradients and weights stayed finite and there is nothing to
tell. "swallowed": nothing was told though one of them was bad. "crashed": the run ended in an error other than the
guard's own stop. Beside them every kind is trained once with the guard and once without: all numbers must be the same.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.fault_kinds import KINDS, WITHOUT_STEPS, WRITTEN_OUT, B, D, Model, T
from benchmarks.fault_oracle import Spot, first_explosion, first_overflow
from benchmarks.fault_plants import Planted, Truth
from torch import Tensor, nn

import throughtime as tt
from throughtime.cures import FlightRecord, Guard, Incident
from throughtime.errors import GuardStopped

STEPS = 8
WHERE = ("input", "weight", "gradient", "weight gradient", "loss", "explosion", "learning rate")
VERDICTS = ("right", "not located", "harmless", "wrong", "swallowed", "crashed")


@dataclass
class Outcome:
    """One plant: its kind and place, what became of it, the incidents, and how many were compared with equations."""

    kind: str
    where: str
    verdict: str  # one of VERDICTS
    detail: str
    incidents: list[Incident]
    compared: int = 0


def plant(kind: str, where: str, seed: int) -> Outcome:
    """One run with one plant."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    model = Model(kind)
    optimizer = _optimizer(model, draw.random() < 0.5)
    if where == "learning rate":
        return _too_high(kind, model, draw)
    guard = Guard(model, optimizer, every=2)
    when, planted, harmless = draw.randrange(1, STEPS - 1), Planted(where, model, draw), False
    try:
        for i in range(STEPS):
            x, target, mask = torch.randn(T, B, D), torch.randn(T, B, 2), torch.ones(T, B, 1)
            remove = planted.put(x, target, mask) if i == when else None
            with guard.step() as step:
                optimizer.zero_grad()
                loss = step.backward(((model(x) - target).square() * mask).mean())
                if i == when:
                    harmless = not _bad_anywhere(model, loss)
                optimizer.step()
            if remove is not None:
                remove()
    except GuardStopped as error:
        return Outcome(kind, where, "wrong", f"stopped: {error}", guard.incidents)
    except Exception as error:
        return Outcome(kind, where, "crashed", f"{type(error).__name__}: {error}", guard.incidents)
    if _bad_anywhere(model, torch.zeros(())):
        return Outcome(kind, where, "wrong", "bad numbers were left in the model", guard.incidents)
    if harmless and not guard.incidents:
        return Outcome(kind, where, "harmless", "it was masked: loss, gradients and weights stayed finite", [])
    return Outcome(kind, where, *judge(kind, planted.truth, when, guard.incidents), guard.incidents)


def judge(kind: str, truth: Truth, when: int, incidents: list[Incident]) -> tuple[str, str]:
    """The verdict on what a guard told, and why."""
    if not incidents:
        return "swallowed", ""
    record = incidents[0].record
    if len(incidents) > 1 or incidents[0].iteration != when or record is None or record.iteration != when:
        return "wrong", f"{len(incidents)} incidents, the first at {incidents[0].iteration}, planted at {when}"
    if not record.located:
        return "not located", "; ".join(record.ruled_out)
    for name, want in vars(truth).items():
        got = getattr(record, name)
        unknown = got is None and name in ("t", "sample") and kind in WITHOUT_STEPS
        if want is not None and got != want and not unknown:
            return "wrong", f"{name} is {got!r}, truth {want!r}; {record}"
    return "right", f"{record.cause}: {record.place}"


def healthy(kind: str, seed: int) -> bool:
    """Whether a run that nothing is planted in is bit for bit the same with the guard and without it."""
    return all(torch.equal(v, w) for v, w in zip(_run(kind, seed, True), _run(kind, seed, False), strict=True))


def _run(kind: str, seed: int, guarded: bool) -> list[Tensor]:
    torch.manual_seed(seed)
    model = Model(kind)
    optimizer = _optimizer(model, seed % 2 == 0)
    guard = Guard(model, optimizer, every=2) if guarded else None
    found: list[Tensor] = []
    for _ in range(2 * STEPS):
        x, target = torch.randn(T, B, D), torch.randn(T, B, 2)
        block: Any = guard.step() if guard is not None else contextlib.nullcontext()
        with block as step:
            optimizer.zero_grad()
            loss = (model(x) - target).square().mean()
            loss.backward() if step is None else step.backward(loss)
            found += [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
            optimizer.step()
    if guard is not None and guard.incidents:
        raise AssertionError(f"an incident in a healthy run: {guard.incidents[0]}")
    return [*found, *(p.detach() for p in model.parameters()), torch.get_rng_state()]


def _optimizer(model: nn.Module, adam: bool) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), 1e-3) if adam else torch.optim.SGD(
        model.parameters(), 1e-2, momentum=0.9)  # fmt: skip


def _bad_anywhere(model: nn.Module, loss: Tensor) -> bool:
    seen = [loss, *model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    return not all(bool(v.isfinite().all()) for v in seen)


def _too_high(kind: str, model: Model, draw: random.Random) -> Outcome:
    """Plain SGD with a learning rate from 1e2 to 1e30, clipped by nothing."""
    rate = 10.0 ** draw.uniform(2, 30)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    guard = Guard(model, optimizer, every=1, tries=3)
    seen: dict[int, tuple[dict[str, Tensor], Tensor, Tensor]] = {}

    def outcome(verdict: str, detail: str) -> Outcome:
        return Outcome(kind, "learning rate", verdict, f"rate {rate:.1e}: {detail}", guard.incidents, compared)

    stopped, compared = "", 0
    try:
        for i in range(3 * STEPS):
            x, target = 3 * torch.randn(T, B, D), torch.randn(T, B, 2)
            seen[i] = {n: p.detach().clone() for n, p in model.named_parameters()}, x, target
            with guard.step() as step:
                optimizer.zero_grad()
                step.backward((model(x) - target).square().mean())
                optimizer.step()
    except GuardStopped:
        stopped = ", stopped"
    except Exception as error:
        return outcome("crashed", f"{type(error).__name__}: {error}")
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        return outcome("wrong", "bad weights were left")
    if not guard.incidents:
        return outcome("harmless", "weights and losses stayed finite and of one size")
    records = [i.record for i in guard.incidents if i.record is not None]
    for record in records:
        if record.cause in ("bad input", "bad parameter"):
            return outcome("wrong", f"cause {record.cause!r}")
        want = _by_the_equations(model, record, seen[record.iteration])
        compared += want is not None
        if want is not None and (record.layer or 0, bool(record.reverse), record.t) != want:
            return outcome("wrong", f"{record.cause} at {record.place}; by the equations at {want}")
    causes = ", ".join(f"{n} x {c}" for c, n in Counter(r.cause for r in records).items())
    return outcome("right" if any(r.located for r in records) else "not located", causes + stopped)


def _by_the_equations(model: Model, record: FlightRecord, run: tuple[dict[str, Tensor], Tensor, Tensor]) -> Spot | None:
    if record.t is None:
        return None
    if record.cause == "overflow in the forward pass":
        return first_overflow(model, *run[:2])
    return first_explosion(model, *run) if record.cause == "exploded gradient" else None


def plants(n: int, seed: int) -> list[tuple[str, str, int]]:
    """n plants: every kind and place as often as any other, as far as n allows, in a random order; explosions in the
    kinds whose equations are written out."""
    draw = random.Random(seed)
    pairs = [(k, w) for k in KINDS for w in WHERE if w != "explosion" or k in WRITTEN_OUT]
    chosen: list[tuple[str, str]] = []
    while len(chosen) < n:
        draw.shuffle(pairs)
        chosen += pairs
    return [(k, w, seed * 100_000 + i) for i, (k, w) in enumerate(chosen[:n])]


def table(outcomes: list[Outcome]) -> str:
    """The counts by place, as a table."""
    lines = [f"{'planted in':<16} {'plants':>7} " + " ".join(f"{v:>12}" for v in VERDICTS)]
    for where in (*WHERE, "all"):
        here = [o for o in outcomes if where in (o.where, "all")]
        counts = Counter(o.verdict for o in here)
        lines.append(f"{where:<16} {len(here):>7} " + " ".join(f"{counts[v]:>12}" for v in VERDICTS))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="every plant, not only those that were not right")
    options = parser.parse_args()
    logging.getLogger("throughtime.guard").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
    outcomes = []
    for kind, where, seed in plants(options.plants, options.seed):
        outcome = plant(kind, where, seed)
        outcomes.append(outcome)
        if options.verbose or outcome.verdict != "right":
            print(f"{outcome.verdict}: {kind}, {where}, seed {seed}: {outcome.detail}")
    high = [i.record for o in outcomes if o.where == "learning rate" for i in o.incidents if i.record is not None]
    compared = sum(o.compared for o in outcomes)
    same = [kind for i, kind in enumerate(KINDS) if healthy(kind, options.seed + i)]
    print(
        f"throughtime {tt.__version__}, torch {torch.__version__}, {len(KINDS)} kinds of layers, seed {options.seed}\n"
    )
    print(table(outcomes))
    causes = ", ".join(f"{n} x {cause}" for cause, n in Counter(r.cause for r in high).most_common())
    print(f"\n{len(high)} incidents of learning rates: {causes}; {compared} compared with the equations")
    print(f"healthy runs that are bit for bit those without the guard: {len(same)} of {len(KINDS)}")


if __name__ == "__main__":
    main()
