"""Mixtures of Gaussians: density, quantiles, samples and the continuous ranked probability score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from throughtime.errors import ConfigError

_HALVINGS = 60  # of the bracket of a quantile: to the last bit of a float64


@dataclass(frozen=True)
class GaussianMixture:
    """p(y) = sum_k w_k N(y; mean_k, scale_k^2), for each place of [...]; the parameters are [..., K].

    log_weights: log w, normalised over K.
    """

    log_weights: Tensor
    mean: Tensor
    scale: Tensor

    def moved(self, offset: Tensor, factor: Tensor) -> GaussianMixture:
        """The distribution of offset + factor * y; both broadcast against [...], factor > 0."""
        factor = factor.unsqueeze(-1)
        return GaussianMixture(self.log_weights, offset.unsqueeze(-1) + factor * self.mean, factor * self.scale)

    def to(self, dtype: torch.dtype) -> GaussianMixture:
        """The same mixture in another precision, on the CPU."""
        return GaussianMixture(*(t.detach().to("cpu", dtype) for t in (self.log_weights, self.mean, self.scale)))

    def log_prob(self, y: Tensor) -> Tensor:
        """[...]: log p(y), in nats."""
        z = (y.unsqueeze(-1) - self.mean) / self.scale
        each = -0.5 * z.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)
        return torch.logsumexp(self.log_weights + each, -1)

    def expectation(self) -> Tensor:
        """[...]: the mean, sum_k w_k mean_k."""
        return (self.log_weights.exp() * self.mean).sum(-1)

    def cdf(self, y: Tensor) -> Tensor:
        """[...]: the probability of a value of at most y."""
        return (self.log_weights.exp() * torch.special.ndtr((y.unsqueeze(-1) - self.mean) / self.scale)).sum(-1)

    def quantile(self, p: float) -> Tensor:
        """[...]: the y with cdf(y) = p, by bisection, in float64; raises ConfigError unless 0 < p < 1."""
        if not 0 < p < 1:
            raise ConfigError(f"a quantile is between 0 and 1, both left out; came {p}")
        mixture = self.to(torch.float64)
        # Between the least and the largest of the components' own quantiles lies that of the mixture.
        at = mixture.mean + mixture.scale * torch.special.ndtri(torch.tensor(p, dtype=torch.float64))
        low, high = at.amin(-1), at.amax(-1)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = mixture.cdf(middle) < p
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def sample(self, generator: Generator | None = None) -> Tensor:
        """[...]: a value drawn from each mixture."""
        weights = self.log_weights.exp().flatten(0, -2) if self.mean.dim() > 1 else self.log_weights.exp().unsqueeze(0)
        k = torch.multinomial(weights, 1, generator=generator).view(*self.mean.shape[:-1], 1)
        noise = torch.randn(k.shape, generator=generator, dtype=self.mean.dtype)
        return (self.mean.gather(-1, k) + self.scale.gather(-1, k) * noise).squeeze(-1)

    def crps(self, y: Tensor) -> Tensor:
        """[...]: the continuous ranked probability score, integral (cdf(x) - [x >= y])^2 dx, in units of y.

            CRPS = sum_k w_k A(y - m_k, s_k^2) - 1/2 sum_kl w_k w_l A(m_k - m_l, s_k^2 + s_l^2),
            A(m, s^2) = 2 s phi(m/s) + m (2 Phi(m/s) - 1)

        It is the absolute error of a forecast without spread. Grimit, Gneiting, Berrocal & Johnson 2006.
        """
        w, s2 = self.log_weights.exp(), self.scale.square()
        near = (w * _A(y.unsqueeze(-1) - self.mean, s2)).sum(-1)
        apart = _A(self.mean.unsqueeze(-1) - self.mean.unsqueeze(-2), s2.unsqueeze(-1) + s2.unsqueeze(-2))
        return near - 0.5 * (w.unsqueeze(-1) * w.unsqueeze(-2) * apart).sum((-1, -2))


def _A(m: Tensor, s2: Tensor) -> Tensor:
    s = s2.sqrt()
    z = m / s
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    return 2 * s * density + m * (2 * torch.special.ndtr(z) - 1)
