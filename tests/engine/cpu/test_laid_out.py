"""The forward walk that keeps what the derivative multiplies by: the same numbers as after it, for all cells."""

import pytest
import torch

from throughtime.cells import NAMES, by_name
from throughtime.engine import cpu
from throughtime.engine.cpu.compiled import arrange
from throughtime.engine.cpu.laid_out import forward_laid_out, with_factors
from throughtime.engine.cpu.plan import padded_row
from throughtime.engine.linear import laid_out, linear_step
from throughtime.engine.torch_backend import previous
from throughtime.engine.trace import tape_of
from throughtime.flow.ran import net_inputs
from throughtime.flow.recurrence import Recurrence
from throughtime.nn import Recurrent

PLENTY = 1 << 30


def recurrence(name, T=9, B=3, H=7, D=5, lengths=None, reverse=False, dtype=torch.float64):
    module = Recurrent(by_name(name), D, H)
    weights = module.layer_weights()[0][0]
    return Recurrence(
        module.step_cell(), weights, torch.randn(T, B, D), None, lengths, reverse, dtype=dtype
    )  # fmt: skip


def both_ways(r, most=PLENTY):
    """What the walk keeps, and the same computed from its states after it."""
    v, tape = r.operands, tape_of(r.cell)
    found = forward_laid_out(tape, *v, r.lengths, r.reverse, most)
    sequences, finals, _ = cpu.forward(tape, *v, r.lengths, r.reverse, False)
    before = [previous(s, first, r.lengths, r.reverse) for s, first in zip(sequences, v.states, strict=True)]
    z = net_inputs(tape, v, before[0])
    order = arrange(tape.columns).order
    return found, (sequences, finals), laid_out(
        linear_step(tape), z, before, v.units, v.matrices, order, padded_row, r.dtype
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("lengths", "reverse"), [(None, False), (None, True), ([5, 9, 1], False), ([5, 9, 2], True)])
def test_it_keeps_what_is_computed_after_it(name, lengths, reverse):
    r = recurrence(name, lengths=None if lengths is None else torch.tensor(lengths), reverse=reverse)
    (sequences, finals, laid), want, (kept, widths, units) = both_ways(r)
    for got, w in zip([*sequences, *finals], [*want[0], *want[1]], strict=True):
        torch.testing.assert_close(got, w, rtol=1e-14, atol=1e-14)
    assert laid.widths == widths
    step = linear_step(tape_of(r.cell))
    n = sum(widths) + 7 * (step.bases and len(step.columns) + step.bases)
    keep = slice(None) if r.keep is None else r.keep[..., 0]
    torch.testing.assert_close(laid.kept[keep][..., :n], kept[keep][..., :n], rtol=1e-12, atol=1e-14)
    for got, w in zip(laid.units, units, strict=True):
        torch.testing.assert_close(got, w)


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "lstm-peephole"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 3, 16, 2), (5, 1, 33, 3)])
def test_the_smallest_and_awkward_sizes(name, sizes):
    T, B, H, D = sizes
    for dtype, near in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        found, _, (kept, widths, _) = both_ways(recurrence(name, T, B, H, D, dtype=dtype))
        assert found is not None and found[2].kept.dtype == dtype
        torch.testing.assert_close(found[2].kept[..., : sum(widths)], kept[..., : sum(widths)], rtol=near, atol=near)


def test_it_says_no_where_there_is_too_much_or_nothing():
    assert both_ways(recurrence("lstm"), most=1000)[0] is None
    v = recurrence("lstm", T=4, B=2)
    assert forward_laid_out(tape_of(v.cell), *v.operands, torch.tensor([0, 0]), False, PLENTY) is None
    assert forward_laid_out(tape_of(v.cell), *v.operands, torch.tensor([4, 0]), False, PLENTY) is None


def test_gradients_sent_back_are_the_same_and_what_was_kept_is_used_once():
    r, ahead = recurrence("lstm"), None
    ahead = Recurrence(r.cell, r.weights, r.x)
    ahead.run_ahead()
    g = torch.randn(9, 3, 7, dtype=torch.float64)
    want, first, second = r.send_back(g)[0], ahead.send_back(g)[0], ahead.send_back(g)[0]
    for name in want:
        torch.testing.assert_close(first[name], want[name], rtol=1e-13, atol=0)
        torch.testing.assert_close(second[name], want[name], rtol=1e-13, atol=0)
    torch.testing.assert_close(ahead.z, r.z, rtol=1e-14, atol=0)
    assert ahead.laid_out() is None, "it was given up when it was used"


def test_a_column_that_moves_with_its_base_alone_is_one_everywhere():
    for name in NAMES:
        tape = tape_of(by_name(name))
        step, kept = linear_step(tape), with_factors(tape, arrange(tape.columns).order)
        wanted = len(step.kept) + (len(step.columns) + step.bases if step.bases else 0)
        assert sum(o.kind == "k" for o in kept.outputs) == wanted
