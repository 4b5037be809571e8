"""AutoClip and ZClip against the rules of their papers, written out a second time here, on a fixed sequence."""

import numpy as np
import pytest
import torch
from torch import nn

from throughtime import cures
from throughtime.errors import ConfigError

# Ordinary norms with a few spikes, and a stretch of another level.
NORMS = [float(v) for v in np.exp(np.random.RandomState(0).normal(0, 0.3, 80))]
for place, factor in ((7, 5), (30, 40), (31, 3), (45, 9), (70, 1000)):
    NORMS[place] *= factor
NORMS[50:60] = [4 * v for v in NORMS[50:60]]


def given(clip, norms):
    """The norms that a clipper leaves of gradients of these norms."""
    p = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    after = []
    for norm in norms:
        p.grad = torch.tensor([1.0, 2.0, -2.0, 4.0], dtype=torch.float64) * norm / 5
        clip([p])
        after.append(p.grad.norm().item())
    return after


@pytest.mark.parametrize("percentile", [10, 50, 90])
def test_autoclip_is_the_percentile_of_the_history(percentile):
    """Seetharaman 2020: numpy's percentile of all norms so far, this one included; clipped as torch does (+1e-6)."""
    want = []
    for t, norm in enumerate(NORMS):
        threshold = np.percentile(NORMS[: t + 1], percentile)
        want.append(norm * min(1.0, threshold / (norm + 1e-6)))
    np.testing.assert_allclose(given(cures.AutoClip(percentile), NORMS), want, rtol=2e-6)


def test_autoclip_over_a_window():
    want = [min(v, np.percentile(NORMS[max(0, t - 9) : t + 1], 25)) for t, v in enumerate(NORMS)]
    np.testing.assert_allclose(given(cures.AutoClip(25, window=10), NORMS), want, rtol=2e-6)


def zclip_by_the_paper(norms, alpha, z_threshold, warmup, max_norm=None):
    first = np.array(norms[:warmup])
    mean, var = first.mean(), first.var()
    out = [min(v, max_norm or np.inf) for v in norms[:warmup]]
    for g in norms[warmup:]:
        z = (g - mean) / (np.sqrt(var) + 1e-6)
        clipped = mean + z_threshold * np.sqrt(var) / (z / z_threshold) if z > z_threshold else g
        mean = alpha * mean + (1 - alpha) * clipped
        var = alpha * var + (1 - alpha) * (clipped - mean) ** 2
        out.append(min(clipped, max_norm or np.inf))
    return out


@pytest.mark.parametrize("alpha, z, warmup", [(0.97, 2.5, 25), (0.9, 1.5, 10)])
@pytest.mark.parametrize("max_norm", [None, 1.2])
def test_zclip_is_the_papers_rule(alpha, z, warmup, max_norm):
    """Kumar 2025: reciprocal clipping to mean + z^2/z_t * std, the statistics fed with what was clipped to."""
    want = zclip_by_the_paper(NORMS, alpha, z, warmup, max_norm)
    clip = cures.ZClip(alpha=alpha, z=z, warmup=warmup, max_norm=max_norm)
    np.testing.assert_allclose(given(clip, NORMS), want, rtol=3e-6)
    assert clip.record.clipped == sum(w < v * (1 - 1e-9) for w, v in zip(want, NORMS, strict=True))
    assert clip.record.clipped >= 5


@pytest.mark.parametrize("make", [lambda: cures.AutoClip(30, window=20), lambda: cures.ZClip(warmup=30)])
@pytest.mark.parametrize("at", [0, 10, 29, 30, 55])
def test_goes_on_from_its_state(make, at, tmp_path):
    whole = given(make(), NORMS)
    first = make()
    given(first, NORMS[:at])
    torch.save(first.state_dict(), tmp_path / "clip.pt")
    second = make()
    second.load_state_dict(torch.load(tmp_path / "clip.pt", weights_only=True))
    assert given(second, NORMS[at:]) == whole[at:]


def test_a_nan_teaches_nothing():
    with_nan = [*NORMS[:40], float("nan"), *NORMS[40:]]
    for make in (lambda: cures.AutoClip(nonfinite="leave"), lambda: cures.ZClip(nonfinite="leave")):
        after = given(make(), with_nan)
        assert after[:40] + after[41:] == given(make(), NORMS)


def test_the_state_of_another_clipper_is_refused():
    with pytest.raises(ConfigError, match="not the state of a ZClip"):
        cures.ZClip().load_state_dict(cures.AutoClip().state_dict())
    groups = cures.ClipGroups({"a": cures.AutoClip(), "b": cures.ClipNorm(1.0)})
    groups.load_state_dict(groups.state_dict())
    with pytest.raises(ConfigError, match="of the groups"):
        groups.load_state_dict({"a": {"history": []}})
