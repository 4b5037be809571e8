"""A small network with an optimiser and a guard, and how the tests of the guard look at them."""

import copy
import math

import torch
from torch import nn

from throughtime.cures import Guard

T, B = 6, 4


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.norm, self.head = nn.LSTM(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)

    def forward(self, x):
        return self.head(self.norm(self.lstm(x)[0].flatten(0, 1)))


def everything(model, opt, *others):
    state = {n: v.clone() for n, v in model.state_dict().items()}
    kept = {i: copy.deepcopy(s) for i, s in opt.state_dict()["state"].items()}
    return state, kept, [copy.deepcopy(o.state_dict()) for o in others]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(v, w) for v, w in zip(a, b, strict=True))
    return a == b


def run(guard, model, opt, x, factor=1.0, plan=None):
    with guard.step() as step:
        opt.zero_grad()
        step.backward(model(x).square().mean() * factor)
        opt.step()
        if plan is not None:
            plan.step()
    return step


def setup(optimizer=torch.optim.Adam, lr=0.01, **options):
    model = Net()
    opt = optimizer(model.parameters(), lr)
    return model, opt, Guard(model, opt, **{"every": 1, **options})


def bad():
    x = torch.randn(T, B, 3)
    x[2, 1, 0] = math.nan
    return x
