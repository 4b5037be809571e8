"""One step, one sample, one unit: every measurement of a recurrence says what it can, and prints it."""

import math

import pytest
import torch

from tests.engine.problems import ALL
from tests.flow.runs import ran
from throughtime.flow.anatomy import anatomy
from throughtime.flow.carousel import carousel_path
from throughtime.flow.gates import gate_statistics
from throughtime.flow.jacobian import state_jacobian
from throughtime.flow.lyapunov import lyapunov_spectrum
from throughtime.flow.memory import memory_statistics


@pytest.mark.parametrize("lengths", [None, [1]])
@pytest.mark.parametrize("name", ALL)
def test_every_cell(name, lengths):
    r = ran(name, T=1, B=1, D=1, H=1, P=1, lengths=lengths)
    J, spectrum = state_jacobian(r), lyapunov_spectrum(r)
    assert J.lags == (0, 1) and spectrum.steps == 1 and spectrum.standard_error.isnan().all()
    determinant = torch.linalg.det(J.steps[0, 0]).abs().log().item()  # -inf where a state is forgotten at once
    total = spectrum.exponents.sum().item()
    assert total == pytest.approx(determinant, abs=1e-9) or max(total, determinant) < -25
    assert "1 sample" in str(spectrum) and "over 1 steps" in str(J)
    parts = anatomy(r.cell)
    if parts.gates:
        found = gate_statistics(r)
        assert all(0 < g.mean < 1 for g in found.gates) and str(found)
    if parts.memories:
        memory = memory_statistics(r)
        assert math.isnan(memory.growth) and "too little to say" in str(memory)
        path = carousel_path(r)
        if memory.tau.isfinite():
            assert path.carousel[1].item() == pytest.approx(math.exp(-1 / memory.tau.item()))
        assert len(path.whole) == 2 and str(path)
