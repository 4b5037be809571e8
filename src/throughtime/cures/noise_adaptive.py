"""Adaptive weight noise: how much each weight bears is learnt, by the variational bound (Graves 2011)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import TracebackType

import torch
from torch import Generator, Tensor, nn

from throughtime.cures.clip import positive
from throughtime.cures.noise import noisy_parameters, normal_like
from throughtime.errors import ConfigError


class AdaptiveWeightNoise(nn.Module):
    """Weight noise whose size is learnt, one standard deviation a weight (Graves 2011, diagonal Gaussian posterior).

        w_i ~ N(mu_i, sigma_i^2);   minimise   E_w[ loss(w) ] + KL / N
        KL = sum_i ln(sigma / sigma_i) + [ (mu_i - mu)^2 + sigma_i^2 - sigma^2 ] / (2 sigma^2)        (nats)
        mu = mean_i mu_i,   sigma^2 = mean_i [ sigma_i^2 + (mu_i - mu)^2 ]          (the best Gaussian prior)

    mu_i are the model's own weights; ln sigma_i are this module's parameters. `loss` is the mean over the data, N their
    number. Weights that the data do not need grow noisy and can be dropped; the total is a description length.

        noise = AdaptiveWeightNoise(model, std=0.075)
        optimizer = Adam([*model.parameters(), *noise.parameters()])
        with noise:
            loss = criterion(model(x), target)
            loss.backward()
        (noise.complexity() / N).backward()
        optimizer.step()

    Forward and backward belong inside the with block. On leaving, the weights are what they were, and the gradient by
    ln sigma_i is added: dL/dw_i * n_i * sigma_i with the noise n_i that was drawn, which is unbiased for any loss
    (the path derivative; Graves approximates it by the square of the gradient).

    target: a module or some parameters; frozen ones get no noise. Raises ConfigError when entered twice at once, and on
    leaving without a backward pass.
    """

    def __init__(
        self, target: nn.Module | Iterable[Tensor], std: float = 0.075, generator: Generator | None = None
    ) -> None:
        super().__init__()
        # Held in a tuple, so that they are not this module's parameters too.
        self._noisy = tuple(p for p in noisy_parameters(target) if p.requires_grad)
        if not self._noisy:
            raise ConfigError("every parameter is frozen; there is nothing to put noise on")
        start = math.log(positive("std", std))
        self.log_std = nn.ParameterList(nn.Parameter(torch.full_like(p, start)) for p in self._noisy)
        self.generator = generator
        self._clean: list[Tensor] | None = None
        self._drawn: list[Tensor] = []
        self._before: list[Tensor | None] = []

    @torch.no_grad()
    def __enter__(self) -> AdaptiveWeightNoise:
        if self._clean is not None:
            raise ConfigError("this noise is on already; leave its with block before entering it again")
        self._clean = [p.detach().clone() for p in self._noisy]
        self._before = [None if p.grad is None else p.grad.clone() for p in self._noisy]
        self._drawn = [normal_like(p, self.generator) * s.exp() for p, s in zip(self._noisy, self.log_std, strict=True)]
        for p, drawn in zip(self._noisy, self._drawn, strict=True):
            p.add_(drawn)
        return self

    @torch.no_grad()
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._clean is not None
        for p, clean in zip(self._noisy, self._clean, strict=True):
            p.copy_(clean)
        self._clean = None
        if kind is not None:
            return
        if all(p.grad is None for p in self._noisy):
            raise ConfigError("no gradient came back inside the with block; call loss.backward() before leaving it")
        for p, s, drawn, before in zip(self._noisy, self.log_std, self._drawn, self._before, strict=True):
            if p.grad is None:
                continue
            g = (p.grad if before is None else p.grad - before) * drawn
            s.grad = g if s.grad is None else s.grad + g

    def complexity(self) -> Tensor:
        """KL of the weights' noise from the best Gaussian prior, nats over all weights; differentiable."""
        mu = torch.cat([p.flatten() for p in self._noisy])
        log_std = torch.cat([s.flatten() for s in self.log_std])
        variance = (2 * log_std).exp()
        prior = (variance + (mu - mu.mean()) ** 2).mean()
        # With the best prior the second sum is 0: what is left are the logarithms.
        return (0.5 * prior.log() - log_std).sum()

    def extra_repr(self) -> str:
        return f"{sum(p.numel() for p in self._noisy)} weights"
