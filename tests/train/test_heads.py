"""The heads and the mixtures of Gaussians: against torch's distributions, closed forms and numerical integrals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions

from throughtime.errors import ConfigError
from throughtime.train.heads import Bernoullis, Mixture, Softmax, Value, perplexity
from throughtime.train.mixture import GaussianMixture


def mixture(shape: tuple[int, ...] = (4,), components: int = 3, seed: int = 0) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    logits, mean, raw = torch.randn(3, *shape, components, generator=generator, dtype=torch.float64)
    return GaussianMixture(logits.log_softmax(-1), 2 * mean, raw.exp())


def torch_mixture(m: GaussianMixture) -> distributions.MixtureSameFamily:
    return distributions.MixtureSameFamily(
        distributions.Categorical(logits=m.log_weights), distributions.Normal(m.mean, m.scale)
    )


def test_density_mean_and_distribution_function_are_those_of_torch() -> None:
    m, y = mixture(), torch.tensor([-2.0, 0.0, 1.0, 5.0], dtype=torch.float64)
    theirs = torch_mixture(m)
    torch.testing.assert_close(m.log_prob(y), theirs.log_prob(y), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(m.cdf(y), theirs.cdf(y), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(m.expectation(), theirs.mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.975, 1 - 1e-6])
def test_a_quantile_is_where_the_distribution_function_has_that_value(p: float) -> None:
    m = mixture((5, 2))
    torch.testing.assert_close(m.cdf(m.quantile(p)), torch.full((5, 2), p, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_the_score_is_the_integral_that_defines_it() -> None:
    m, y = mixture((4,)), torch.tensor([-3.0, 0.1, 1.0, 6.0], dtype=torch.float64)
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    for i in range(4):
        one = GaussianMixture(m.log_weights[i], m.mean[i], m.scale[i])
        square = (one.cdf(x) - (x >= y[i]).double()).square()
        assert float(m.crps(y)[i]) == pytest.approx(float(torch.trapezoid(square, x)), abs=2e-4)  # the grid's step


def test_the_score_of_one_gaussian_is_the_closed_form() -> None:
    """sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi)), Gneiting & Raftery 2007."""
    scale, z = 1.7, 0.4
    m = GaussianMixture(*(torch.tensor([v], dtype=torch.float64) for v in (0.0, 3.0, scale)))
    phi = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    want = scale * (z * math.erf(z / math.sqrt(2)) + 2 * phi - 1 / math.sqrt(math.pi))
    assert float(m.crps(torch.tensor(3.0 + scale * z, dtype=torch.float64))) == pytest.approx(want, rel=1e-12)


def test_moving_a_mixture_moves_its_values() -> None:
    m, y = mixture(), torch.tensor([-1.0, 0.0, 2.0, 3.0], dtype=torch.float64)
    offset, factor = torch.arange(4.0).double(), torch.tensor(2.5).double()
    moved = m.moved(offset, factor)
    torch.testing.assert_close(moved.log_prob(offset + factor * y), m.log_prob(y) - math.log(2.5))
    torch.testing.assert_close(moved.quantile(0.3), offset + factor * m.quantile(0.3))
    torch.testing.assert_close(moved.crps(offset + factor * y), factor * m.crps(y))


def test_samples_are_drawn_from_the_mixture() -> None:
    m = mixture((2,))
    many = GaussianMixture(*(t.expand(40_000, 2, 3) for t in (m.log_weights, m.mean, m.scale)))
    drawn = many.sample(torch.Generator().manual_seed(0))
    for p in (0.1, 0.5, 0.9):
        part = (drawn <= m.quantile(p)).double().mean(0)
        assert float((part - p).abs().max()) < 5 * math.sqrt(p * (1 - p) / 40_000)
    assert m.sample().shape == (2,)


@pytest.mark.parametrize("p", [0.0, 1.0, -1.0, math.nan])
def test_no_quantile_outside_of_0_and_1(p: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        mixture().quantile(p)


def test_losses_are_negative_log_probabilities() -> None:
    generator = torch.Generator().manual_seed(1)
    classes = torch.randn(3, 2, 5, generator=generator)
    targets = torch.randint(5, (3, 2), generator=generator)
    want = -distributions.Categorical(logits=classes).log_prob(targets)
    torch.testing.assert_close(Softmax(5).loss(classes, targets), want)

    notes = torch.randint(2, (3, 2, 5), generator=generator).float()
    want = -distributions.Bernoulli(logits=classes).log_prob(notes).sum(-1)
    torch.testing.assert_close(Bernoullis(5).loss(classes, notes), want)

    head = Mixture(leads=2, components=3)
    outputs = torch.randn(4, head.size, generator=generator)
    numbers = torch.randn(4, 2, generator=generator)
    want = -torch_mixture(head.distribution(outputs)).log_prob(numbers).mean(-1)
    torch.testing.assert_close(head.loss(outputs, numbers), want)

    assert Value().loss(torch.tensor([[3.0]]), torch.tensor([1.0])).tolist() == [4.0]


def test_a_mixture_cannot_shrink_onto_a_value() -> None:
    head = Mixture(1)
    outputs = torch.tensor([[0.0, 0.0, -1e4]])
    assert float(head.loss(outputs, torch.zeros(1, 1))) == pytest.approx(0.5 * math.log(2 * math.pi) + math.log(1e-3))


def test_perplexity() -> None:
    assert perplexity(math.log(65)) == pytest.approx(65) and perplexity(1e6) == math.inf
