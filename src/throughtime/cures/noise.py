"""Noise for training: on the inputs, and a fixed amount on the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from throughtime.errors import ConfigError


class InputNoise(nn.Module):
    """Adds Gaussian noise to what passes, in training mode; in eval mode it does nothing (Bishop 1995; Graves 2013).

        x_t <- x_t + std * n_t,   n_t ~ N(0, 1) afresh for each element and step

    std is in the units of the input. Takes a tensor of any shape, or a PackedSequence. Against overfitting; and a
    network that will feed on its own output learns to live with inputs that are a little wrong.
    """

    def __init__(self, std: float, generator: Generator | None = None) -> None:
        super().__init__()
        self.std, self.generator = _std(std), generator

    def forward(self, x: Any) -> Any:
        if not self.training or self.std == 0:
            return x
        if isinstance(x, PackedSequence):
            return x._replace(data=self._noisy(x.data))
        if not isinstance(x, Tensor) or not x.is_floating_point():
            came = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise ConfigError(f"noise is added to floating-point tensors; came {came}. Put it behind the embedding")
        return self._noisy(x)

    def _noisy(self, x: Tensor) -> Tensor:
        return x + self.std * normal_like(x, self.generator)

    def extra_repr(self) -> str:
        return f"std={self.std:g}"


def add_input_noise(layer: nn.Module, std: float, generator: Generator | None = None) -> RemovableHandle:
    """Adds `InputNoise` to the first argument of a layer's or a cell's call, by a hook; handle.remove() ends it.

    Acts while `layer.training`. A cell in a loop gets fresh noise at each step.
    """
    noise = InputNoise(std, generator)

    def hook(module: nn.Module, args: tuple) -> tuple:
        if not args:
            raise ConfigError(f"{type(module).__name__} was called without positional arguments; there is no input")
        return (noise.train(module.training)(args[0]), *args[1:])

    return layer.register_forward_pre_hook(hook)


class WeightNoise:
    """Gaussian noise on the weights for one forward and backward pass at a time (Graves 2011, 2013).

        w <- w + std * n,  n ~ N(0, 1);   the gradient is taken at the noisy weights, the step from the clean ones

        noise = WeightNoise(model, 0.075)
        with noise:                          # once for each batch
            loss = criterion(model(x), target)
            loss.backward()
        optimizer.step()

    Forward AND backward belong inside. On leaving, also by an error, the weights are what they were, bit for bit. In
    place, so that fused layers, cells and any other module are served alike.

    target: a module, all of whose parameters get noise (Graves: the weights of the network), or some parameters.
    std: 0.075 in Graves 2013. generator: for noise that can be repeated.

    Raises ConfigError when entered twice at once.
    """

    def __init__(
        self, target: nn.Module | Iterable[Tensor], std: float = 0.075, generator: Generator | None = None
    ) -> None:
        self.parameters = noisy_parameters(target)
        self.std, self.generator = _std(std), generator
        self._clean: list[Tensor] | None = None

    @torch.no_grad()
    def __enter__(self) -> WeightNoise:
        if self._clean is not None:
            raise ConfigError("this noise is on already; leave its with block before entering it again")
        self._clean = [p.detach().clone() for p in self.parameters]
        for p in self.parameters:
            p.add_(normal_like(p, self.generator), alpha=self.std)
        return self

    @torch.no_grad()
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._clean is not None
        for p, clean in zip(self.parameters, self._clean, strict=True):
            p.copy_(clean)
        self._clean = None


def noisy_parameters(target: nn.Module | Iterable[Tensor]) -> list[Tensor]:
    """The parameters of a module, each once, or those given; ConfigError for none and for integers."""
    found = list(target.parameters() if isinstance(target, nn.Module) else target)
    if not found:
        raise ConfigError("there are no parameters to put noise on")
    if not all(isinstance(p, Tensor) and p.is_floating_point() for p in found):
        raise ConfigError("weight noise is for floating-point parameters: pass a module, or some of its parameters")
    return found


def normal_like(v: Tensor, generator: Generator | None) -> Tensor:
    """N(0, 1) in the shape, dtype and place of `v`; drawn where the generator lives."""
    device = v.device if generator is None else generator.device
    return torch.randn(v.shape, dtype=v.dtype, device=device, generator=generator).to(v.device)


def _std(std: float) -> float:
    if isinstance(std, bool) or not isinstance(std, int | float) or not (std >= 0 and math.isfinite(std)):
        raise ConfigError(f"std, the standard deviation of the noise, must be a finite number >= 0; came {std!r}")
    return float(std)
