"""Every public name of the cures is there, says what it is, and names its source where it is somebody's result."""

import inspect
import re

import pytest

from throughtime import cures

# Whose result a cure is: each of these must say so.
THEIRS = [
    "AdaptiveWeightNoise", "AutoClip", "ClipNorm", "ClipValue", "InputNoise", "LockedDropout", "VariationalDropout",
    "WeightNoise", "ZClip", "Zoneout", "advise_clip", "chrono_", "clip_derivative", "clip_gradient", "clip_output",
    "flossing", "forget_gate_bias_", "identity_", "lyapunov_exponents", "omega", "orthogonal_", "skip_connections",
    "spectral_radius_", "swap_cell", "truncate_gradient", "truncated_bptt", "zoneout",
]  # fmt: skip


@pytest.mark.parametrize("name", cures.__all__)
def test_every_name_says_what_it_is(name):
    thing = getattr(cures, name)
    text = inspect.getdoc(thing)
    assert text and thing.__doc__ and not text.startswith(f"{name}(")  # dataclasses write such a line themselves
    assert thing.__module__.startswith("throughtime.cures.")


@pytest.mark.parametrize("name", THEIRS)
def test_every_cure_names_its_source(name):
    assert re.search(r"[A-Z][a-z]+(?: et al\.)?(?: & [A-Z][a-z]+)? (?:19|20)\d\d", inspect.getdoc(getattr(cures, name)))


def test_the_list_is_whole_and_in_order():
    assert list(cures.__all__) == sorted(cures.__all__) and len(set(cures.__all__)) == len(cures.__all__)
