"""Initialisers of the recurrent weights, in place: orthogonal, identity, scaled to a spectral radius."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn

from throughtime import cells
from throughtime.cures.changes import Change, Changes
from throughtime.cures.clip import positive
from throughtime.diagnosis.parts import Part, parts
from throughtime.errors import ConfigError


@torch.no_grad()
def orthogonal_(
    model: nn.Module,
    gain: float = 1.0,
    *,
    gates: Sequence[str] | None = None,
    generator: Generator | None = None,
) -> Changes:
    """Draws the recurrent weights of each gate as gain times a random orthogonal matrix (Saxe 2014; Le 2015).

        U^T U = gain^2 I     so that a linear network neither shrinks nor stretches what it carries

    Every layer and direction of `model`, torch's and ours; weight_hh [R*H, P] is R blocks, each drawn alone, uniformly
    (Haar) from `generator`. With a projected state (P < H) the columns are orthonormal.
    gates: only these, by the names that the cell gives them. Input weights and biases stay as they are.

    Raises ConfigError, before anything is changed, where a layer has no such weights.
    """
    positive("gain", gain)
    blocks = _blocks(model, gates)

    def draw(block: Tensor) -> Tensor:
        fresh = torch.empty(block.shape, dtype=torch.float64, device=_device(block, generator))
        return nn.init.orthogonal_(fresh, gain, generator=generator)

    return _fill("Orthogonal recurrent weights", blocks, draw, f"random orthogonal times {gain:g}")


@torch.no_grad()
def identity_(
    model: nn.Module, scale: float = 1.0, *, input_std: float | None = 0.001, generator: Generator | None = None
) -> Changes:
    """Sets up simple networks as the IRNN of Le 2015: U = scale * I, biases 0, W drawn from N(0, input_std^2).

    With ReLU units the state then stays as it is but for the input: diag(f') U^T is near I. It is the ReLU that the
    paper is about; scale < 1 forgets. input_std=None leaves W.

    Raises ConfigError, before anything is changed, for layers that are not simple networks: in a gated cell U feeds the
    gates, and an identity there means nothing.
    """
    positive("scale", scale)
    if input_std is not None:
        positive("input_std", input_std)
    found = fitting(model, lambda p: isinstance(p.cell, cells.Simple | cells.PreActivation), "is not a simple network")
    made = []
    for part in found:
        U = parameter(part, "weight_hh")
        U.copy_(scale * torch.eye(*U.shape, dtype=U.dtype, device=U.device))
        made.append(Change(str(part.where("weight_hh")), f"{scale:g} times the identity"))
        for bias in ("bias_ih", "bias_hh"):
            if bias in part.parameters:
                parameter(part, bias).zero_()
                made.append(Change(str(part.where(bias)), "0"))
        if input_std is not None:
            draw(parameter(part, "weight_ih"), lambda v: v.normal_(0.0, input_std, generator=generator), generator)
            made.append(Change(str(part.where("weight_ih")), f"drawn from N(0, {input_std:g}^2)"))
    return Changes("Identity recurrent weights", tuple(made))


@torch.no_grad()
def spectral_radius_(model: nn.Module, radius: float = 0.95, *, gates: Sequence[str] | None = None) -> Changes:
    """Scales the recurrent weights of each gate so that their largest eigenvalue has this absolute value.

        U <- U * radius / max |eig U|

    Just below 1 for a network that is to fade slowly (Jaeger 2001; Pascanu 2013 start at 0.95). gates: only these.
    Raises ConfigError, before anything is changed, for a block that is not square (a projected state) or all of whose
    eigenvalues are 0.
    """
    positive("radius", radius)
    blocks = _blocks(model, gates)
    factors = []
    for where, block in blocks:
        if block.shape[0] != block.shape[1]:
            raise ConfigError(
                f"{where}: the block is {list(block.shape)}, which has no eigenvalues; nothing was changed"
            )
        now = torch.linalg.eigvals(block.double()).abs().max().item()
        # Rounding gives a nilpotent matrix eigenvalues of about 1e-16 of its size, or the root of that.
        if not now > 1e-8 * block.double().norm().item():
            raise ConfigError(f"{where}: the eigenvalues are 0 and cannot be scaled; draw U first. Nothing was changed")
        factors.append(radius / now)
    made = []
    for (where, block), factor in zip(blocks, factors, strict=True):
        block.mul_(factor)
        made.append(Change(where, f"scaled by {factor:.4g} to spectral radius {radius:g}"))
    return Changes("Spectral radius", tuple(made))


# --- what all initialisers share --------------------------------------------------------------------------------------


def fitting(model: nn.Module, fits: Callable[[Part], bool], why_not: str) -> list[Part]:
    """Every recurrent layer and direction of the model; ConfigError unless there is one, and all of them fit."""
    found = parts(model)
    if not found:
        raise ConfigError("there is no recurrent layer of torch.nn or throughtime.nn in this model")
    for part in found:
        if not fits(part):
            raise ConfigError(
                f"{part.where()} ({part.kind}) {why_not}; pass the layers that are meant instead of the whole model. "
                "Nothing was changed"
            )
        for kind, value in part.parameters.items():
            if not isinstance(value, nn.Parameter):
                raise ConfigError(
                    f"{part.where(kind)} is computed from other parameters (weight_norm, parametrised, pruned?) and "
                    "cannot be set; take that off first. Nothing was changed"
                )
    return found


def parameter(part: Part, kind: str, gate: str | None = None) -> Tensor:
    """One parameter of a layer to be written to, or the rows of one of its gates."""
    value = part.parameters[kind].detach()
    if gate is None:
        return value
    gates = part.cell.recurrent_gates if kind.endswith("hh") else tuple(part.cell.gates)
    k = gates.index(gate)
    return value[k * part.H : (k + 1) * part.H]


def draw(target: Tensor, into: Callable[[Tensor], Tensor], generator: Generator | None) -> None:
    """Fills a tensor with what `into` draws, on the generator's device."""
    fresh = torch.empty(target.shape, dtype=target.dtype, device=_device(target, generator))
    target.copy_(into(fresh))


def _blocks(model: nn.Module, gates: Sequence[str] | None) -> list[tuple[str, Tensor]]:
    found = fitting(model, lambda p: bool(p.cell.recurrent_gates), "has no recurrent weights")
    blocks = []
    for part in found:
        stray = [g for g in gates or () if g not in part.cell.recurrent_gates]
        if stray:
            raise ConfigError(
                f"{part.where()} has no recurrent weights for {', '.join(stray)}; its gates are "
                f"{', '.join(part.cell.recurrent_gates)}. Nothing was changed"
            )
        for gate in gates or part.cell.recurrent_gates:
            blocks.append((f"{part.where('weight_hh')}[{gate}]", parameter(part, "weight_hh", gate)))
    return blocks


def _fill(title: str, blocks: list[tuple[str, Tensor]], fresh: Callable[[Tensor], Tensor], said: str) -> Changes:
    for _, block in blocks:
        block.copy_(fresh(block))
    return Changes(title, tuple(Change(where, said) for where, _ in blocks))


def _device(target: Tensor, generator: Generator | None) -> torch.device:
    return target.device if generator is None else generator.device
