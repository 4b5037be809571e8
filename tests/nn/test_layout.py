"""Packing and padding: torch's values, and derivatives of any order."""

from __future__ import annotations

import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from throughtime.nn.layout import enter


def test_in_and_out_is_torchs_padding_and_packing():
    torch.manual_seed(0)
    for lengths in ([1], [5, 5, 5], [7, 4, 4, 1], [9, 1, 1]):
        x = torch.randn(max(lengths), len(lengths), 3, dtype=torch.float64)
        packed = pack_padded_sequence(x, lengths)
        padded, layout = enter(packed, batch_first=False)
        wanted, counted = pad_packed_sequence(packed)
        assert torch.equal(padded, wanted) and torch.equal(layout.lengths_cpu, counted)
        assert torch.equal(layout.output(padded).data, packed.data)
        assert torch.equal(layout.padded(packed.data), wanted)


def test_derivatives_of_both():
    torch.manual_seed(0)
    packed = pack_padded_sequence(torch.randn(5, 3, 2, dtype=torch.float64), [5, 3, 1])

    def there_and_back(data):
        padded, layout = enter(packed._replace(data=data), batch_first=False)
        return layout.output(padded.sin() * padded).data

    data = packed.data.clone().requires_grad_()
    assert torch.autograd.gradcheck(there_and_back, (data,))
    assert torch.autograd.gradgradcheck(there_and_back, (data,))
    torch.testing.assert_close(
        torch.func.grad(lambda d: there_and_back(d).sum())(packed.data),
        torch.autograd.grad(there_and_back(data).sum(), data)[0],
    )
