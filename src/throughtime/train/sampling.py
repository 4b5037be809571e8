"""Text written by a trained model, symbol by symbol."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from throughtime.errors import ConfigError, NonFiniteError
from throughtime.train.model import LanguageModel


def generate(model: LanguageModel, prompt: str = "", length: int = 200, temperature: float = 1.0, seed: int = 0) -> str:
    """The `length` symbols with which the model goes on after `prompt`; see `stream`."""
    return "".join(stream(model, prompt, length, temperature, seed))


def stream(
    model: LanguageModel, prompt: str = "", length: int = 200, temperature: float = 1.0, seed: int = 0
) -> Iterator[str]:
    """Go on after `prompt`, piece by piece; each symbol is drawn from p = softmax(logits / temperature).

    Temperature 1 is what the model learned, less is safer, 0 takes the likeliest symbol each time. The same
    seed gives the same text. After an empty prompt the model starts as if after a newline, or after its first
    symbol if it knows no newline.
    Raises `ConfigError` for a bad length, temperature or seed, `DataError` for a prompt with unknown symbols,
    `NonFiniteError` if the model's output is not finite.
    """
    if length < 0:
        raise ConfigError(f"length must be at least 0, got {length}")
    if not 0 <= temperature < math.inf:
        raise ConfigError(
            f"temperature must be finite and at least 0 (0 takes the likeliest symbol), got {temperature}"
        )
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed must be from 0 to 2**63 - 1, got {seed}")
    if prompt:
        start = model.vocabulary.encode(prompt)
    elif model.vocabulary.kind == "bytes" or "\n" in model.vocabulary.characters:
        start = model.vocabulary.encode("\n")
    else:
        start = torch.zeros(1, dtype=torch.long)
    return _stream(model, start, length, temperature, torch.Generator().manual_seed(seed))


def _stream(
    model: LanguageModel, start: torch.Tensor, length: int, temperature: float, generator: torch.Generator
) -> Iterator[str]:
    device = model.output.weight.device
    decoder = model.vocabulary.decoder()
    numbers, state = start.unsqueeze(1), None
    training = model.training
    model.eval()  # no dropout
    try:
        for _ in range(length):
            with torch.no_grad():
                logits, state = model(numbers.to(device), state)
            last = logits[-1, 0].cpu().double()
            if not bool(last.isfinite().all()):
                raise NonFiniteError("the model's output is not finite: its weights are broken; use another checkpoint")
            if temperature == 0:
                number = int(last.argmax())
            else:  # the maximum comes off first: the quotient may then only run to -inf, where p = 0
                p = torch.softmax((last - last.max()) / temperature, 0)
                number = int(torch.multinomial(p, 1, generator=generator))
            numbers = torch.tensor([[number]])
            if piece := decoder.feed(number):
                yield piece
        if piece := decoder.close():
            yield piece
    finally:
        model.train(training)
