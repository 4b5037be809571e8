"""What a model's last linear map means: the distribution of the target, and how well it did."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from throughtime.train.mixture import GaussianMixture


class Head(ABC):
    """Reads outputs [..., size] as a distribution of the target.

    targets: one shape for each head, beside the leading dimensions of the outputs; see the heads.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """How many numbers a step's output has."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """[...]: the loss of each step, in nats unless the head says otherwise."""


@dataclass(frozen=True)
class Softmax(Head):
    """One of `classes`: -log softmax(outputs)[target]; targets [...], numbers of classes (int64)."""

    classes: int

    @property
    def size(self) -> int:
        return self.classes

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        flat = functional.cross_entropy(outputs.flatten(0, -2).float(), targets.flatten(), reduction="none")
        return flat.view(targets.shape)


@dataclass(frozen=True)
class Bernoullis(Head):
    """`labels` independent yes-or-no answers a step; targets [..., labels] of 0 and 1.

        loss = -sum_n y_n log p_n + (1 - y_n) log(1 - p_n),   p = sigmoid(outputs)

    summed over the labels, as Boulanger-Lewandowski 2012 scores music.
    """

    labels: int

    @property
    def size(self) -> int:
        return self.labels

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = outputs.float()
        each = functional.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none")
        return each.sum(-1)


@dataclass(frozen=True)
class Value(Head):
    """One number a step; the loss is the squared error; targets [...]."""

    @property
    def size(self) -> int:
        return 1

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        value = outputs.float().squeeze(-1)
        return (value - targets.to(value.dtype)).square()


@dataclass(frozen=True)
class Mixture(Head):
    """For each of `leads` numbers a mixture of `components` Gaussians (Bishop 1994; Graves 2013, eq. 16-25).

    targets [..., leads]. The loss is the mean over the leads of -log p(target), in nats. One component is a Gaussian.
    """

    leads: int
    components: int = 1

    @property
    def size(self) -> int:
        return 3 * self.leads * self.components

    def distribution(self, outputs: Tensor) -> GaussianMixture:
        """The mixtures [..., leads] that the outputs [..., size] stand for."""
        parts = outputs.float().unflatten(-1, (3, self.leads, self.components))
        logits, mean, raw = parts.unbind(-3)
        return GaussianMixture(logits.log_softmax(-1), mean, functional.softplus(raw) + LEAST_SCALE)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return -self.distribution(outputs).log_prob(targets.float()).mean(-1)


LEAST_SCALE = 1e-3
"""Of a mixture's component, where targets are of unit size: a component cannot shrink onto one value and win without
bound."""


def perplexity(nats: float) -> float:
    """exp(nats), inf where that is too large for a float."""
    return float(torch.tensor(nats, dtype=torch.float64).exp())
