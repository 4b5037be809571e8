"""Forward mode from the tape against autograd, and against reverse mode on the engine, for every cell."""

import pytest
import torch

from tests.engine.problems import ALL, F64
from tests.flow.runs import ran
from throughtime.engine import reference, torch_backend
from throughtime.engine.trace import step_of
from throughtime.errors import FlowError
from throughtime.flow.tangent import Tangent


def by_autograd(r, t, b):
    """ds_t/ds_{t-1} of one sample: torch.autograd.functional.jacobian of the cell's own step."""
    v = r.operands
    before = [
        torch_backend.previous(s, first, r.lengths, r.reverse)[t, b : b + 1]
        for s, first in zip(r.sequences, v.states, strict=True)
    ]
    sizes = [s.shape[-1] for s in before]

    def step(flat):
        states = list(flat.split(sizes, dim=-1))
        own = (v.W, v.U, v.b, v.units, v.matrices)
        _, new = reference.unroll(lambda a: step_of(r.cell, a), r.cell.columns, v.x[t : t + 1, b : b + 1], *own, states)
        return torch.cat(new, -1)[0]

    return torch.autograd.functional.jacobian(step, torch.cat(before, -1))[:, 0]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_equals_autograd_over_the_step(name, reverse):
    r = ran(name, T=4, B=2, reverse=reverse)
    tangent = Tangent(r)
    for t in range(4):
        J = tangent.jacobian(t)
        for b in range(2):
            torch.testing.assert_close(J[b], by_autograd(r, t, b), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["lstm", "gru", "gru-reset-before", "lstm-projected", "users-own"])
def test_padding_is_the_identity(name):
    r = ran(name, T=4, B=2, lengths=[4, 2])
    tangent = Tangent(r)
    for t in (2, 3):
        torch.testing.assert_close(tangent.jacobian(t)[1], torch.eye(sum(tangent.sizes), dtype=F64))
        torch.testing.assert_close(tangent.jacobian(t)[0], by_autograd(r, t, 0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(tangent.jacobian(1)[1], by_autograd(r, 1, 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("name", ["lstm-peephole", "lstm-1997", "gru-reset-before"])
def test_forward_mode_is_the_transpose_of_reverse_mode(name, truncated):
    """<w, J_T ... J_1 v> is the same number whichever way it is worked out, under the truncated rule too."""
    r = ran(name, T=6, B=2, truncated=truncated)
    tangent = Tangent(r)
    N = sum(tangent.sizes)
    v, w = torch.randn(2, N, 1, dtype=F64), torch.randn(2, N, dtype=F64)
    forward = v
    for t in range(6):
        forward = tangent.carry(t, forward)
    start = [s[None] for s in w.split(tangent.sizes, dim=-1)]
    *_, (_, _, back, _) = torch_backend.backward_steps(r.linearised(), start, lambda t, ds: ds)
    torch.testing.assert_close((w * forward[..., 0]).sum(1), (torch.cat(back, -1)[0] * v[..., 0]).sum(1))


def test_truncated_cuts_what_flows_into_the_gates():
    J = Tangent(ran("lstm", T=1, B=1, truncated=True)).jacobian(0)[0]
    assert (J[5:, :5] == 0).all()  # dc/dh
    assert (J[5:, 5:] == J[5:, 5:].diagonal().diag()).all()  # dc/dc is the carousel


def test_a_state_that_is_not_finite_is_told_with_its_step():
    r = ran("rnn-identity", T=5, B=2)
    with torch.no_grad():
        r.x[3, 1] = torch.inf
    with pytest.raises(FlowError, match="the state h is NaN or infinite from step 3 on"):
        Tangent(r)
