"""Noise on inputs and weights: its moments, that it goes away again, and what it does to the gradient."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from throughtime import cures
from throughtime import nn as ttnn
from throughtime.errors import ConfigError


def close_to_normal(noise, std):
    """Mean 0, standard deviation `std`, kurtosis 3: each within 4.5 of its standard errors."""
    n = noise.numel()
    assert abs(noise.mean().item()) < 4.5 * std / math.sqrt(n)
    assert abs(noise.std().item() / std - 1) < 4.5 / math.sqrt(2 * n)
    assert abs(((noise / std) ** 4).mean().item() - 3) < 4.5 * math.sqrt(96 / n)


def test_input_noise_has_the_stated_moments():
    x = torch.randn(50, 20, 40)
    noise = cures.InputNoise(0.3, torch.Generator().manual_seed(0))
    drawn = noise(x) - x
    close_to_normal(drawn, 0.3)
    lag = (drawn[1:] * drawn[:-1]).mean().item() / 0.09  # fresh at each step
    assert abs(lag) < 4.5 / math.sqrt(drawn[1:].numel())
    assert torch.equal(noise.eval()(x), x)


def test_input_noise_on_packed_sequences_and_by_hook():
    packed = pack_padded_sequence(torch.zeros(6, 3, 2), torch.tensor([6, 4, 1]))
    noisy = cures.InputNoise(1.0)(packed)
    assert noisy.batch_sizes is packed.batch_sizes and noisy.data.shape == (11, 2) and noisy.data.std() > 0.5
    cell = nn.LSTMCell(2, 3)
    seen = []
    cell.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    handle = cures.add_input_noise(cell, 0.5)
    cell.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    x = torch.zeros(1, 2)
    state = None
    for _ in range(3):
        state = cell(x, state)
    noisy = seen[1::2]
    assert all(v.any() for v in noisy) and not torch.equal(noisy[0], noisy[1])
    cell.eval()
    cell(x)
    assert not seen[-1].any()
    handle.remove()
    cell.train()(x)
    assert not seen[-1].any()


@pytest.mark.parametrize("make", [lambda: nn.LSTM(3, 40), lambda: nn.GRUCell(3, 40), lambda: ttnn.PeepholeLSTM(3, 40)])
def test_weight_noise_is_on_inside_and_gone_outside(make):
    model = make()
    clean = [p.detach().clone() for p in model.parameters()]
    noise = cures.WeightNoise(model, 0.075, torch.Generator().manual_seed(1))
    drawn = []
    for _ in range(2):
        with noise:
            moved = [(p.detach() - c).flatten() for p, c in zip(model.parameters(), clean, strict=True)]
            drawn.append(torch.cat(moved))
        assert all(torch.equal(p, c) for p, c in zip(model.parameters(), clean, strict=True))
    close_to_normal(drawn[0], 0.075)
    assert abs(torch.corrcoef(torch.stack(drawn))[0, 1].item()) < 4.5 / math.sqrt(drawn[0].numel())
    with pytest.raises(ZeroDivisionError), noise:
        1 / 0  # noqa: B018
    assert all(torch.equal(p, c) for p, c in zip(model.parameters(), clean, strict=True))


def test_the_gradient_is_that_at_the_noisy_weights():
    model, x = nn.LSTM(3, 2), torch.randn(5, 1, 3)
    with cures.WeightNoise(model, 0.5):
        noisy = {name: p.detach().clone() for name, p in model.named_parameters()}
        model(x)[0].sum().backward()
    there = nn.LSTM(3, 2)
    there.load_state_dict(noisy)
    there(x)[0].sum().backward()
    for p, q in zip(model.parameters(), there.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad) and not torch.equal(p, q)


def test_adaptive_noise_derivative_is_that_of_the_expected_loss():
    """loss = 1/2 sum a_i (w_i - c_i)^2: E = 1/2 sum a_i ((mu_i - c_i)^2 + sigma_i^2); dE/d ln sigma_i = a_i sigma_i^2.

    The mean over draws, within 4.5 of its standard errors.
    """
    w = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))
    a, c = torch.tensor([1.0, 4.0, 0.5]), torch.tensor([0.0, -1.0, 1.0])
    noise = cures.AdaptiveWeightNoise([w], 0.3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        noise.log_std[0].copy_(torch.tensor([0.1, 0.3, 1.0]).log())
    found, n = [], 3000
    for _ in range(n):
        noise.zero_grad()
        w.grad = None
        with noise:
            (0.5 * a * (w - c) ** 2).sum().backward()
        found.append(torch.cat([noise.log_std[0].grad, w.grad]))
    found = torch.stack(found)
    want = torch.cat([a * torch.tensor([0.1, 0.3, 1.0]) ** 2, a * (torch.tensor([0.5, -1.0, 2.0]) - c)])
    assert ((found.mean(0) - want).abs() < 4.5 * found.std(0) / math.sqrt(n)).all()
    torch.testing.assert_close(w.detach(), torch.tensor([0.5, -1.0, 2.0]), rtol=0, atol=0)


def test_adaptive_noise_adds_to_gradients_that_are_there():
    w = nn.Parameter(torch.tensor([1.0]))
    noise = cures.AdaptiveWeightNoise([w], 0.5, torch.Generator().manual_seed(0))
    w.grad = torch.tensor([100.0])
    with noise:
        drawn = (w.detach() - 1.0).clone()
        (3 * w).sum().backward()
    torch.testing.assert_close(noise.log_std[0].grad, 3 * drawn)
    assert w.grad.item() == 103.0


def test_complexity_is_the_divergence_from_the_best_prior():
    """Against torch's own KL of Gaussians; and no other prior is nearer."""
    model = nn.GRU(2, 3)
    noise = cures.AdaptiveWeightNoise(model, 0.1)
    with torch.no_grad():
        for s in noise.log_std:
            s.add_(torch.randn_like(s))
    mu = torch.cat([p.flatten() for p in model.parameters()])
    sigma = torch.cat([s.flatten() for s in noise.log_std]).exp()
    posterior = torch.distributions.Normal(mu, sigma)

    def divergence(mean, std):
        return torch.distributions.kl_divergence(posterior, torch.distributions.Normal(mean, std)).sum()

    mean = mu.mean()
    std = (sigma**2 + (mu - mean) ** 2).mean().sqrt()
    torch.testing.assert_close(noise.complexity(), divergence(mean, std))
    for dm, ds in ((0.05, 1.0), (-0.05, 1.0), (0.0, 1.1), (0.0, 0.9)):
        assert divergence(mean + dm, std * ds) > noise.complexity()
    # Its derivative is that with the prior held at its best (the envelope theorem).
    ours = torch.autograd.grad(noise.complexity(), list(noise.log_std))
    held = torch.autograd.grad(divergence(mean.detach(), std.detach()), list(noise.log_std))
    for a, b in zip(ours, held, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_adaptive_noise_learns_which_weights_matter():
    """y depends on the first input alone: the other weight grows noisy, this one stays quiet."""
    model = nn.Linear(2, 1, bias=False)
    noise = cures.AdaptiveWeightNoise(model, 0.1, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam([*model.parameters(), *noise.parameters()], lr=0.05)
    x = torch.randn(400, 2) * torch.tensor([1.0, 0.01])
    y = 2 * x[:, :1]
    for _ in range(1000):
        optimizer.zero_grad()
        with noise:
            (50 * (model(x) - y) ** 2).mean().backward()
        (noise.complexity() / 400).backward()
        optimizer.step()
    needed, idle = noise.log_std[0].exp()[0].tolist()
    assert needed < 0.03 < 0.3 < idle  # both began at 0.1


def test_refusals():
    model = nn.Linear(2, 2)
    noise = cures.WeightNoise(model)
    with noise, pytest.raises(ConfigError, match="on already"):
        noise.__enter__()
    adaptive = cures.AdaptiveWeightNoise(model)
    with pytest.raises(ConfigError, match=r"call loss\.backward"), adaptive:
        pass
    for act, message in (
        (lambda: cures.WeightNoise(nn.Identity()), "no parameters"),
        (lambda: cures.WeightNoise([torch.ones(2, dtype=torch.int64)]), "floating-point"),
        (lambda: cures.WeightNoise(model, -1.0), "std"),
        (lambda: cures.InputNoise(math.nan), "std"),
        (lambda: cures.InputNoise(0.1)(torch.tensor([1, 2])), "behind the embedding"),
        (lambda: cures.AdaptiveWeightNoise(model.requires_grad_(False)), "frozen"),
    ):
        with pytest.raises(ConfigError, match=message):
            act()
