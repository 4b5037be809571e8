"""torch.compile around a model's forward pass, its refusal in one line, and the way to the model as it is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from throughtime.errors import ConfigError


def compile_forward(model: nn.Module) -> None:
    """From here on a call of the model runs its forward pass, and the backward pass of it, compiled.

    Hooks on the model itself stay outside of what is compiled. The recurrent layers are one operator each, which
    torch.compile calls as it is: their loop over time is compiled code already.
    """
    fast = torch.compile(model.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        try:
            return fast(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            inner = getattr(error, "inner_exception", None) or error
            why = next((line.strip() for line in str(inner).splitlines() if line.strip()), type(inner).__name__)
            raise ConfigError(
                f"torch.compile cannot compile this model here ({why}); on the CPU it needs a C++ compiler such as "
                "g++, on a GPU Triton; install it, or leave out --compile (--no-compile with --resume)"
            ) from None

    model.forward = forward  # type: ignore[method-assign]


def is_compiled(model: nn.Module) -> bool:
    """Whether `compile_forward` was called for this model."""
    return "forward" in vars(model)


@contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Within it the model runs step by step, so that hooks on its parts see them; the parameters are the same."""
    fast = vars(model).pop("forward", None)
    try:
        yield
    finally:
        if fast is not None:
            vars(model)["forward"] = fast
