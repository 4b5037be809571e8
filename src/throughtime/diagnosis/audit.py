"""The audit of a model before any training: what its recurrent weights and options say by themselves."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from throughtime.diagnosis.audit_gates import gate_biases
from throughtime.diagnosis.audit_recurrent import recurrent_weights
from throughtime.diagnosis.finding import Finding, Where, ordered
from throughtime.diagnosis.parts import Part, parts
from throughtime.errors import FlowError
from throughtime.nn.layer import StackedLayer


@torch.no_grad()
def audit(model: nn.Module, lag: int | None = None) -> list[Finding]:
    """What the weights and options of every recurrent layer and direction say, with no data and no training.

    Looked at: parameters that are NaN, zero or all alike; the forget bias as the sum of both bias vectors, its
    half-life, and whether every layer and direction has it; spectral radius and sigma_1 of U, and how far it is from
    orthogonal; the stability of a GRU; the initialisation; dropout that does nothing.

    lag: how far back the model is to remember, in steps, such as `Dependence.horizon().steps`. Given that, what is too
         short for it is a warning and no longer a note.
    Gives the findings by importance; a healthy model has notes only. `describe` prints them. It knows torch.nn's
    recurrent layers and cells and those of throughtime.nn; a model without any gets one warning that says so.
    Raises FlowError for what is not a module, and a lag that is not a number of steps.
    """
    if lag is not None and (isinstance(lag, bool) or lag < 1):
        raise FlowError(f"lag must be a number of steps of at least 1, or None; came {lag!r}")
    found = parts(model)
    if not found:
        return [
            Finding(
                "warning", "no-recurrence", Where(), "no recurrent layer that is known",
                "There is nothing to audit: neither torch.nn's recurrent layers nor those of throughtime.nn are in it.",
                "if it has a recurrence of its own, measure it while it runs",
            )
        ]  # fmt: skip
    findings: list[Finding] = list(_options(model))
    sound = []
    for part in found:
        broken = list(_broken(part))
        findings += broken
        if not any(f.severity == "error" for f in broken):
            sound.append(part)
            findings += _initialisation(part)
    findings += gate_biases(sound, lag)
    for part in sound:
        findings += recurrent_weights(part, lag)
    return ordered(findings)


def _options(model: nn.Module) -> Iterator[Finding]:
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase | StackedLayer) and module.dropout > 0 and module.num_layers == 1:
            rate = float(module.dropout)
            yield Finding(
                "warning", "dropout-of-one-layer", Where(name), f"dropout={rate:g} with one layer",
                "It acts between layers, so it does nothing here.",
                "set it to 0, take more layers, or put nn.Dropout behind the layer", rate,
            )  # fmt: skip


def _broken(part: Part) -> Iterator[Finding]:
    """Parameters that cannot be right: NaN, all 0, all alike."""
    for kind, value in part.parameters.items():
        bad = int((~value.isfinite()).sum())
        if bad:
            yield Finding(
                "error", "not-finite", part.where(kind), f"{bad} of {value.numel()} numbers are NaN or infinite",
                "Everything that is computed with them is NaN.",
                "go back to a checkpoint from before, and clip the gradient", float(bad),
            )  # fmt: skip
    for kind, loses in (("weight_ih", "its input"), ("weight_hh", "its past")):
        if kind not in part.parameters or not part.parameters[kind].isfinite().all():
            continue
        value = part.parameters[kind]
        if not value.any():
            yield Finding(
                "error", "all-zero", part.where(kind), "all of it is 0", f"The layer does not see {loses}.",
                "initialise it; a layer that is meant to be without is better made so", 0.0,
            )  # fmt: skip
            continue
        H = part.H
        dead = [u for u in range(H) if not value.view(-1, H, value.shape[1])[:, u].any()]
        if dead:
            yield Finding(
                "warning", "dead-units", part.where(kind),
                f"{len(dead)} of {H} units have only zeros, the first is unit {dead[0]}",
                f"These units do not see {loses}.", "initialise them, or prune them away", float(len(dead)),
            )  # fmt: skip
    if part.H > 1 and _alike(part):
        yield Finding(
            "error", "units-alike", part.where("weight_ih"), f"all {part.H} units have the same weights",
            "They get the same gradient, so they stay the same: the layer is one unit.", "initialise at random",
            float(part.H),
        )  # fmt: skip


def _alike(part: Part) -> bool:
    """Whether exchanging any two units changes nothing: the rows alike, and U the same on and off its diagonal."""
    for value in part.parameters.values():
        rows = value.view(-1, part.H, *value.shape[1:]) if value.shape[0] % part.H == 0 else value[None]
        if not torch.equal(rows, rows[:, :1].expand_as(rows)):
            return False
    return True


def _initialisation(part: Part) -> Iterator[Finding]:
    """How the parameters lie to torch's default, U(-1/sqrt(H), 1/sqrt(H)), whose deviation is 1/sqrt(3 H)."""
    bound, H = part.bound, part.H
    matrices = {k: v for k, v in part.parameters.items() if v.dim() == 2 and v.numel() >= 8}
    sizes = {k: v.double().square().mean().sqrt().item() / (bound / 3**0.5) for k, v in matrices.items()}
    default = all(v.abs().max() <= bound * 1.0001 for v in part.parameters.values()) and all(
        abs(r - 1) < 0.1 + 2 / matrices[k].numel() ** 0.5 for k, r in sizes.items()
    )
    told = ", ".join(f"{k} {r:.2g}" for k, r in sizes.items())
    yield Finding(
        "note", "initialisation", part.where(),
        f"as torch draws it, U(-{bound:.3g}, {bound:.3g})" if default else f"not as torch draws it: {told} times that",
        "Every weight and both biases from one distribution, for any cell." if default else
        "Root mean squares, relative to torch's default 1/sqrt(3 H).", number=max(sizes.values(), default=None),
    )  # fmt: skip
    # As h is at most 1 in size, and inputs are best kept so, this is how far the net inputs are spread.
    spread = part.weights.weight_ih.double().square().sum(1).sqrt().median().item()
    if spread > 25 and part.weights.weight_ih.double().abs().median() > 1:
        yield Finding(
            "warning", "large-input-weights", part.where("weight_ih"),
            f"inputs of variance 1 give net inputs with a deviation of {spread:.3g}",
            f"Gates and activations of all {H} units are saturated, so their derivatives are near 0.",
            "draw W smaller, or scale the inputs down", spread,
        )  # fmt: skip
