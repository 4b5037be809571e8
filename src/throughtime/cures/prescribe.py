"""prescribe(): tries the remedies that fit the diagnosis on the user's model and data, and shows before and after."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from torch import nn

from throughtime.cures.prescribe_choice import Chosen, choose, unsound
from throughtime.cures.prescribe_judge import choose_winner, judge
from throughtime.cures.prescribe_pool import Runner, runner
from throughtime.cures.prescribe_recipe import Given, recipe
from throughtime.cures.prescribe_remedies import Candidate
from throughtime.cures.prescribe_result import Outcome, Prescription
from throughtime.cures.prescribe_trial import Job
from throughtime.diagnosis.batches import Batch, read_batches
from throughtime.diagnosis.diagnose import diagnose
from throughtime.diagnosis.result import Diagnosis
from throughtime.errors import ConfigError

HELD = 16  # batches held out, at most


def prescribe(
    model: nn.Module,
    inputs: Any,
    loss: Any,
    optimiser: Given,
    *,
    diagnosis: Diagnosis | None = None,
    held_out: Any = None,
    clip: float | None = None,
    steps: int = 200,
    seeds: int | Sequence[int] = 5,
    candidates: Sequence[Candidate] | None = None,
    executor: Executor | None = None,
) -> Prescription:
    """Finds the change that helps this model on these data, by trying: side by side, from the same start, over seeds.

        print(tt.prescribe(model, loader, criterion, optimizer))

    First the model is diagnosed, and trained without any change. Each finding, and what went wrong in that training,
    speaks for some remedies; each of these is then tried on a copy of the model as it is now, for the same number of
    steps on the same batches in the same order. The table shows gradient horizon, loss, stability and the time of a
    step, before and after. Where nothing speaks for a change, nothing is tried, and it says so.

    A candidate helps if its training held with every seed, and ended with a lower loss than doing nothing, by 2 % and
    by more than chance; see `throughtime.cures.prescribe_judge.judge`. Of those that help the winner is the one with
    the lowest loss, or the first within 5 % of what that one gains, for the first are the simplest.

    inputs, loss: as `throughtime.diagnose` takes them: one batch and a loss of the output, or pairs (inputs, targets)
               with a loss of output and targets. Up to `steps` batches are kept in memory and gone through again and
               again; about a fifth of them, 16 at most, are held out and not trained on.
    optimiser: the optimiser of this model, which every trial has a copy of, state and all; or a function that makes one
               from parameters; or the learning rate of plain SGD. Schedules are not followed.
    diagnosis: what `diagnose` found before; None: it is made here, from up to 8 of the batches.
    held_out:  batches to measure the loss on, in the form of `inputs`; None: some of the inputs.
    clip:      the norm that your training clips to, if it does; every trial does as well.
    seeds:     how many, or which: they decide the order of the batches, dropout, and what a remedy draws. 3 and more.
    candidates: what to try instead of what is chosen from the findings.
    executor:  where the trials run, anything with the submit() of concurrent.futures; None: a pool of processes, one a
               core. What is submitted to another executor must be picklable. In threads the trials run one by one.

    Nothing of the user's changes. Exceptions of the model or the loss pass through. Raises ConfigError for arguments
    that make no sense, FlowError where there is nothing to measure, ThroughtimeError where a process of the pool died.
    """
    some = _seeds(seeds)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"steps, of each trial, must be a whole number of at least 1; came {steps!r}")
    if clip is not None and not clip > 0:
        raise ConfigError(f"clip, the norm that training clips to, must be above 0, or None; came {clip}")
    made = recipe(model, optimiser)
    found, of = read_batches(inputs, loss, steps + (HELD if held_out is None else 0))
    notes: list[str] = []
    if held_out is None:
        train, held = _split(found, notes)
    else:
        train, (held, _) = found, read_batches(held_out, loss, HELD)
    if diagnosis is None:
        diagnosis = _diagnose(model, found, loss, made.build(model), clip)
    result = Prescription("", diagnosis, None, (), steps, some, notes=tuple(notes))
    if diagnosis.case == "broken" and not all(bool(p.isfinite().all()) for p in model.parameters()):
        return replace(result, verdict=f"Nothing can be tried from here. {diagnosis.verdict}")
    job = Job(model, made, of, tuple(train), tuple(held), steps, clip, diagnosis.fraction)
    with runner(job, executor) as run:
        nothing = _try(run, [Candidate(())], some)[0]
        chosen = choose(model, diagnosis, nothing) if candidates is None else Chosen(tuple(candidates), ())
        outcomes = _try(run, chosen.candidates, some)
    judged = tuple(judge(o, nothing, len(outcomes)) for o in outcomes)
    best = choose_winner(judged, nothing)
    result = replace(
        result, nothing=nothing, outcomes=judged, winner=None if best is None else best.candidate, advice=chosen.advice
    )
    return replace(result, verdict=_verdict(result, best))


def _try(run: Runner, candidates: Sequence[Candidate], seeds: Sequence[int]) -> list[Outcome]:
    trials = run([(c, seed) for c in candidates for seed in seeds])
    n = len(seeds)
    return [Outcome(c, tuple(trials[k * n : (k + 1) * n])) for k, c in enumerate(candidates)]


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    several = range(seeds) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds
    found = tuple(several) if isinstance(several, Sequence) else ()
    if len(found) < 3 or len(set(found)) < len(found) or not all(isinstance(s, int) and s >= 0 for s in found):
        raise ConfigError(f"seeds must be 3 or more, or that many different whole numbers from 0; came {seeds!r}")
    return found


def _split(found: list[Batch], notes: list[str]) -> tuple[list[Batch], list[Batch]]:
    if len(found) == 1:
        notes.append("with one batch only, the loss is measured on the batch that is trained on")
        return found, found
    n = min(HELD, max(1, len(found) // 5))
    return found[:-n], found[-n:]


def _diagnose(model: nn.Module, found: list[Batch], loss: Any, optimiser: Any, clip: float | None) -> Diagnosis:
    if found[0].targets is None:
        given: Any = [b.kwargs or b.args for b in found[:8]]
    else:
        given = [(b.kwargs or b.args, b.targets) for b in found[:8]]
    return diagnose(model, given, loss, optimiser=optimiser, clip=clip)


def _verdict(p: Prescription, best: Outcome | None) -> str:
    nothing = p.nothing
    assert nothing is not None
    fell = f"In {len(p.seeds)} runs of {p.steps} steps the loss went from {nothing.start:.3g} to {nothing.end:.3g}"
    if best is not None:
        held = f"to {best.end:.3g}, where without a change it goes to {nothing.end:.3g}"
        if nothing.broken:
            held = f"to {best.end:.3g} and comes through, where without a change training breaks in {nothing.broken} of"
            held += f" {len(p.seeds)} runs"
        reach = best.horizon(1)
        far = "" if reach is None else f" The gradient then reaches {reach[0]}{' or more' * (reach[0] != reach[1])}."
        more = ""
        asked = p.diagnosis.horizons.asked
        if p.diagnosis.case == "vanishes" and asked is not None and not _reaches(best, p):
            more = f" The data ask for {asked}: make this change, then prescribe again."
        return f"Change this: {best.candidate.name}. The loss falls from {best.start:.3g} {held}.{far}{more}"
    if p.outcomes:
        text = (
            f"Change nothing for now: none of {len(p.outcomes)} candidates did better than nothing within {p.steps} "
            f"steps. {p.diagnosis.verdict}"
        )
        farther = [o.candidate.name for o in p.outcomes if _reaches(o, p)]
        if farther:
            text += f" The gradient does reach far enough with {', '.join(farther)}: try more steps."
        return text
    if p.diagnosis.worries or unsound(nothing):
        return f"Nothing here to try: no remedy speaks to what was found. {p.diagnosis.verdict}"
    return f"Change nothing. {p.diagnosis.verdict} {fell}, and nothing broke."


def _reaches(o: Outcome, p: Prescription) -> bool:
    asked, reach = p.diagnosis.horizons.asked, o.horizon(1) or o.horizon(0)
    short = p.diagnosis.case == "vanishes"
    return short and asked is not None and reach is not None and reach[0].steps >= asked.steps
