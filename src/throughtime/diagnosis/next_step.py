"""The step that an optimiser would take from the gradients that are there, tried on copies."""

from __future__ import annotations

import copy

import torch
from torch import nn

from throughtime.errors import FlowError
from throughtime.flow import UpdateSizes, step_sizes, update_sizes


def next_step(model: nn.Module, optimiser: torch.optim.Optimizer | float, clip: float | None = None) -> UpdateSizes:
    """How far the next step would move each parameter (`throughtime.flow.step_sizes`); nothing of the user's moves.

    optimiser: the one that training uses, with its state; or the learning rate of plain SGD.
    clip:      the norm that all gradients together are clipped to before, if they are.
    Raises FlowError where no parameter has a gradient, and for an optimiser that a copy cannot be made of.
    """
    owned = [p for p in model.parameters() if p.grad is not None]
    if not owned:
        raise FlowError("no parameter has a gradient, so there is no step to look at")
    norm = torch.stack([p.grad.detach().double().norm() for p in owned if p.grad is not None]).norm().item()
    factor = 1.0 if clip is None or not norm > clip else clip / norm
    if not isinstance(optimiser, torch.optim.Optimizer):
        return update_sizes(model, float(optimiser) * factor)
    names = {id(p): name for name, p in model.named_parameters() if p.grad is not None}
    twins, groups = {}, []
    for group in optimiser.param_groups:
        made = []
        for p in group["params"]:
            twin = nn.Parameter(p.detach().clone())
            twin.grad = None if p.grad is None else p.grad.detach().clone() * factor
            made.append(twin)
            if id(p) in names:
                twins[names[id(p)]] = twin
        groups.append({**group, "params": made})
    if not twins:
        raise FlowError(
            "none of the model's parameters with a gradient is in this optimiser; give the one of this model"
        )
    before = {name: twin.detach().clone() for name, twin in twins.items()}
    try:
        acting = type(optimiser)(groups)  # type: ignore[call-arg]
        acting.load_state_dict(copy.deepcopy(optimiser.state_dict()))
        acting.step()
    except Exception as error:  # an optimiser of anybody's; what it cannot do on a copy it has not done at all
        why = " ".join(str(error).split())
        raise FlowError(
            f"{type(optimiser).__name__} cannot be tried on a copy ({why}); give the learning rate"
        ) from None
    missing = tuple(name for name, p in model.named_parameters() if p.requires_grad and name not in twins)
    return UpdateSizes(step_sizes(before, twins).updates, missing, measured=True)
