"""torch's own inputs and error inputs for RNN, LSTM and GRU, given to ours."""

from __future__ import annotations

import warnings

import pytest
import torch

import throughtime.nn as tn

with warnings.catch_warnings():
    # torch's test internals use what torch itself has deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    from torch.testing._internal import common_modules as cm

INPUTS = {
    "RNN": (tn.RNN, cm.module_inputs_torch_nn_RNN_GRU, {"is_rnn": True, "with_packed_sequence": True}),
    "GRU": (tn.GRU, cm.module_inputs_torch_nn_RNN_GRU, {"is_rnn": False, "with_packed_sequence": True}),
    "LSTM": (tn.LSTM, cm.module_inputs_torch_nn_LSTM, {}),
}


def args_of(function_input):
    return function_input.args, function_input.kwargs


@pytest.mark.parametrize("kind", INPUTS)
def test_module_inputs(kind):
    ours, make, extra = INPUTS[kind]
    torchs = getattr(torch.nn, kind)
    samples = make(None, device="cpu", dtype=torch.float64, requires_grad=False, training=True, **extra)
    assert len(samples) >= 16
    for sample in samples:
        args, kwargs = args_of(sample.constructor_input)
        a, b = ours(*args, **kwargs, dtype=torch.float64), torchs(*args, **kwargs, dtype=torch.float64)
        b.load_state_dict(a.state_dict())
        args, kwargs = args_of(sample.forward_input)
        out = a(*args, **kwargs)
        torch.testing.assert_close(out, b(*args, **kwargs), rtol=0, atol=1e-10)
        if isinstance(args[0], torch.Tensor):  # torch's reference for these is the batched call
            torch.testing.assert_close(out, sample.reference_fn(a, *args, **kwargs), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_module_error_inputs(kind, dtype):
    samples = cm.module_error_inputs_torch_nn_RNN_GRU(
        None, device="cpu", dtype=dtype, requires_grad=False, training=True
    )
    assert len(samples) >= 10
    for sample in samples:
        args, kwargs = args_of(sample.module_error_input.constructor_input)
        if sample.error_on is cm.ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(sample.error_type, match=sample.error_regex):
                INPUTS[kind][0](*args, **kwargs)
        else:
            layer = INPUTS[kind][0](*args, **kwargs)
            args, kwargs = args_of(sample.module_error_input.forward_input)
            with pytest.raises(sample.error_type, match=sample.error_regex):
                layer(*args, **kwargs)
