"""The carousel apart from the rest of dc_t/dc_k, against the full Jacobian and closed forms."""

import pytest
import torch

from tests.engine.problems import F64
from tests.flow.runs import ran
from tests.flow.test_gates import biased_lstm
from throughtime.errors import FlowError
from throughtime.flow.anatomy import carousel_factor
from throughtime.flow.carousel import carousel_path
from throughtime.flow.jacobian import state_jacobian


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["lstm", "lstm-peephole", "lstm-projected", "gru", "additive-memory-feedback"])
def test_parts_of_the_full_jacobian(name, reverse):
    r = ran(name, T=7, B=2, H=4, reverse=reverse)
    found, J = carousel_path(r), state_jacobian(r)
    F, state = carousel_factor(r, found.state), found.state
    run = list(range(6, -1, -1)) if reverse else list(range(7))
    assert len(found.whole) == 8
    for d in range(8):
        k = -1 if d == 7 else run[6 - d]
        k = 7 if reverse and d == 7 else k
        whole = J.product(run[-1], k, state, state)
        carousel = torch.diag_embed(torch.stack([F[t] for t in run[7 - d :]]).prod(0)) if d else torch.eye(4).double()
        for part, value in ((found.whole, whole), (found.carousel, carousel), (found.rest, whole - carousel)):
            want = (value.expand(2, 4, 4).square().sum((1, 2)).mean() / 4).sqrt()
            torch.testing.assert_close(part[d], want, rtol=1e-10, atol=1e-14)


def test_without_recurrent_weights_all_of_it_is_the_carousel():
    found = carousel_path(biased_lstm(0.0, 5.0, 0.0))
    f = torch.tensor(5.0, dtype=F64).sigmoid()
    torch.testing.assert_close(found.carousel, f ** torch.arange(7, dtype=F64))
    torch.testing.assert_close(found.whole, found.carousel)
    assert (found.rest == 0).all()


def test_the_truncated_gradient_is_the_carousel_and_in_the_first_lstm_it_is_1():
    found = carousel_path(ran("lstm-1997", T=30, truncated=True))
    assert (found.whole == 1).all() and (found.carousel == 1).all() and (found.rest == 0).all()
    assert carousel_path(ran("lstm-1997", T=30)).rest[-1] > 0.1


def test_lags_count_from_each_samples_own_end():
    r = ran("lstm", T=6, B=2, lengths=[5, 3])
    found, J = carousel_path(r), state_jacobian(r)
    assert len(found.whole) == 6  # lags 0..5: the longest sample has 5 steps
    by_sample = [J.product(4, 2, "c", "c")[0], J.product(2, 0, "c", "c")[1]]
    want = (torch.stack(by_sample).square().sum((1, 2)).mean() / 5).sqrt()
    torch.testing.assert_close(found.whole[2], want)
    F = carousel_factor(r, "c")
    along = torch.stack([F[3, 0] * F[4, 0], F[1, 1] * F[2, 1]])
    torch.testing.assert_close(found.carousel[2], (along.square().sum(1).mean() / 5).sqrt())
    torch.testing.assert_close(found.whole[5], (J.product(4, -1, "c", "c")[0].square().sum() / 5).sqrt())


def test_prints_a_table():
    text = str(carousel_path(biased_lstm(0.0, 5.0, 0.0)))
    assert "dc_t/dc_(t-d) (LSTM, layer 0), from the last step" in text
    assert "       0  1.00e+00  1.00e+00  0.00e+00" in text and "       6  9.61e-01" in text


def test_refusals():
    with pytest.raises(FlowError, match="has no memory"):
        carousel_path(ran("rnn"))
