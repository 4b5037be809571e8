"""Packed weights: made once for each version of a weight, made anew when it changes, forgotten when it dies."""

import gc

import torch

from throughtime.engine.cpu.call import cache
from throughtime.engine.cpu.packing import PackCache, layout

from .problems import assert_same_as_torch, problem


def how(n):
    return layout(True, (0,), n, n, 16, False, 0)


def test_packed_once_for_each_version():
    packs, w = PackCache(), torch.randn(6, 5)
    first = packs.get(w, how(6), 1)
    assert packs.get(w, how(6), 1) is first
    w.mul_(2)
    second = packs.get(w, how(6), 1)
    assert second is not first
    assert packs.get(w, layout(False, (0,), 6, 6, 16, False, 0), 1) is not second
    assert packs.get(w, how(6), 1) is second


def test_a_write_behind_the_version_counter_is_noticed():
    packs, w = PackCache(), torch.randn(6, 5)
    first = packs.get(w, how(6), 1)
    w.data.mul_(2)
    second = packs.get(w, how(6), 1)
    assert second is not first
    for at in ((0, 0), (3, 2), (5, 4)):  # one number, wherever it stands
        w.data[at] += 1e-6
        third = packs.get(w, how(6), 1)
        assert third is not second
        second = third


def test_forgotten_with_the_weight():
    packs, w = PackCache(), torch.randn(6, 5)
    packs.get(w, how(6), 1)
    assert len(packs) == 1
    del w
    gc.collect()
    assert len(packs) == 0


def test_inference_tensors_are_not_kept():
    packs = PackCache()
    with torch.inference_mode():
        w = torch.randn(6, 5)
        packs.get(w, how(6), 1)
    assert len(packs) == 0


def test_a_training_step_uses_the_new_weights():
    p = problem("lstm", 3, 4, 5, 8)
    assert_same_as_torch(p)
    before = len(cache)
    p.W.add_(0.1)
    p.U.mul_(0.5)
    assert_same_as_torch(p)
    assert len(cache) == before
