"""The audit of gate biases: how long a gated layer keeps what it holds, by both of its bias vectors together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from throughtime.diagnosis.finding import Finding, steps
from throughtime.diagnosis.parts import Part
from throughtime.flow.anatomy import anatomy

# Sums of two biases U(-1/sqrt(H), 1/sqrt(H)) lie below 2/sqrt(H) and their mean near 0; these are well beyond.
SET, UNSET = 0.5, 0.3
STUCK = 10.0  # the derivative of the logistic function is below 5e-5 there


def keeping_gate(part: Part) -> str | None:
    """The gate whose value is the factor of the old memory, read from the cell's tape: f of an LSTM, u of a GRU, and
    so for a user's own cell; None for other cells."""
    parts = anatomy(part.cell)
    names = {number: name for name, number in parts.gates.items()}
    for terms in parts.memories.values():
        if len(terms) == 1 and terms[0][0] == 1 and len(terms[0][1]) == 1 and terms[0][1][0] in names:
            return names[terms[0][1][0]]
    return None


def half_life(bias: Tensor) -> Tensor:
    """Steps in which a memory falls to one half at x = 0, h = 0, where the gate is sigmoid(bias): ln 2 / -ln f."""
    return math.log(2) / torch.nn.functional.softplus(-bias)


def gate_biases(found: Sequence[Part], lag: int | None) -> Iterator[Finding]:
    """What the biases of all gated layers and directions say, each and against each other."""
    gated = [(part, gate) for part in found if (gate := keeping_gate(part))]
    for part, gate in gated:
        yield from _one(part, gate, lag)
    for module in dict.fromkeys(part.module for part, _ in gated):
        yield from _against([(p, g) for p, g in gated if p.module == module])


def _one(part: Part, gate: str, lag: int | None) -> Iterator[Finding]:
    bias = part.bias(gate)
    mean, half = bias.mean().item(), half_life(bias).median().item()
    name = {"f": "forget", "u": "update"}.get(gate, gate)
    both = _both(part, gate)
    longest = half_life(bias).max().item()
    short = lag is not None and longest * math.log2(100) < lag
    if mean < -1 and longest < 2:
        yield Finding(
            "warning", f"{name}-bias", part.where("bias_hh"), f"{name} bias {mean:.2f} on average ({both})",
            f"Every unit forgets half within {steps(longest)}, as far as the biases say: the memory is closed.",
            "set the bias to 1 or more", half, "steps",
        )  # fmt: skip
    elif bias.min() > STUCK:
        yield Finding(
            "warning", f"{name}-bias", part.where("bias_hh"), f"{name} bias {mean:.1f} on average ({both})",
            f"The gate is stuck open, its derivative below {math.exp(-STUCK):.0e}: it cannot learn to forget.",
            "chrono initialisation (Tallec & Ollivier 2018) needs no more than ln T, 7 for 1000 steps", half, "steps",
        )  # fmt: skip
    else:
        means = f"At x = 0, h = 0 half of the memory is forgotten in {steps(half)} (median; longest {steps(longest)})."
        if short:
            means += f" Of what lies {lag} steps back less than 1 % is left in any unit."
        do = f"set it to 1 or more; ln({lag}) = {math.log(lag):.1f} keeps for {lag} steps" if short and lag else ""
        yield Finding(
            "warning" if short else "note", f"{name}-bias", part.where("bias_hh"),
            f"{name} bias {mean:.2f} on average ({both})", means, do, half, "steps",
        )  # fmt: skip
    if gate == "f" and abs(mean) < UNSET and part.H >= 4:  # of fewer units a bias may be alike by chance
        others = {g: part.bias(g) for g in part.cell.gates if g != "f"}
        high = [g for g, b in others.items() if b.mean() > 0.8 and b.std(correction=0) < SET]
        if len(high) == 1:
            order = ", ".join(part.cell.gates)
            yield Finding(
                "warning", "bias-of-wrong-gate", part.where("bias_hh"),
                f"the bias of gate {high[0]} is {part.bias(high[0]).mean():.2f} and that of the forget gate {mean:.2f}",
                f"It looks as if the forget bias had been set in the wrong block; the order of the gates is {order}.",
                f"set the block of f: [{part.H}:{2 * part.H}] of the bias" if part.cell.gates[1] == "f" else
                "set the block of f", part.bias(high[0]).mean().item(),
            )  # fmt: skip


def _against(gated: Sequence[tuple[Part, str]]) -> Iterator[Finding]:
    """Layers and directions of one module whose bias was left as it was while others were set."""
    means = [part.bias(gate).mean().item() for part, gate in gated]
    high = max(means)
    if high < SET:
        return
    for (part, gate), mean in zip(gated, means, strict=True):
        if abs(mean) < UNSET and high - mean > SET:
            other = gated[means.index(high)][0].where()
            yield Finding(
                "warning", "bias-not-everywhere", part.where("bias_hh"),
                f"the bias of gate {gate} is {mean:.2f}, elsewhere {high:.2f} ({other})",
                "It seems that the bias was set in some layers or directions and left out here.",
                "set it in every layer and in both directions", mean,
            )  # fmt: skip


def _both(part: Part, gate: str) -> str:
    blocks = {kind: part.block(kind, gate) for kind in ("bias_ih", "bias_hh")}
    told = [f"{kind} {b.mean():.2f}" for kind, b in blocks.items() if b is not None]
    return " + ".join(told) if told else "no bias"
