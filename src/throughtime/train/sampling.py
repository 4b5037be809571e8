"""Text written by a trained model, symbol by symbol."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor

from throughtime.errors import ConfigError, NonFiniteError
from throughtime.train.model import LanguageModel


def generate(
    model: LanguageModel,
    prompt: str = "",
    length: int = 200,
    temperature: float = 1.0,
    seed: int = 0,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
) -> str:
    """The `length` symbols with which the model goes on after `prompt`; see `stream`."""
    return "".join(stream(model, prompt, length, temperature, seed, top_k=top_k, top_p=top_p))


def stream(
    model: LanguageModel,
    prompt: str = "",
    length: int = 200,
    temperature: float = 1.0,
    seed: int = 0,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Iterator[str]:
    """Go on after `prompt`, piece by piece; each symbol is drawn from p = softmax(logits / temperature).

    Temperature 1 is what the model learned, less is safer, 0 takes the likeliest symbol each time. top_k > 0 draws
    from the k likeliest only (Fan 2018), top_p < 1 from the fewest that together have at least that probability
    (Holtzman 2020). The same seed gives the same text. After an empty prompt the model starts as if after a newline,
    or after its first symbol if it knows no newline.
    Raises `ConfigError` for a bad length, temperature, top_k, top_p or seed, `DataError` for a prompt with unknown
    symbols, `NonFiniteError` if the model's output is not finite.
    """
    if length < 0:
        raise ConfigError(f"length must be at least 0, got {length}")
    if not 0 <= temperature < math.inf:
        raise ConfigError(
            f"temperature must be finite and at least 0 (0 takes the likeliest symbol), got {temperature}"
        )
    if top_k < 0:
        raise ConfigError(f"top_k must be at least 1, or 0 for all symbols, got {top_k}")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p must be greater than 0 and at most 1 (1 for all symbols), got {top_p}")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed must be from 0 to 2**63 - 1, got {seed}")
    start = model.vocabulary.encode(prompt)
    if not len(start):
        knows = model.vocabulary.knows("\n")
        start = model.vocabulary.encode("\n") if knows else torch.zeros(1, dtype=torch.long)

    def choose(logits: Tensor, generator: Generator) -> int:
        return draw(logits, temperature, top_k, top_p, generator)

    return _stream(model, start, length, choose, torch.Generator().manual_seed(seed))


def draw(logits: Tensor, temperature: float, top_k: int, top_p: float, generator: Generator) -> int:
    """The number of a symbol, drawn from finite logits [V]; see `stream`."""
    if temperature == 0:
        return int(logits.argmax())
    # The maximum comes off first: the quotient may then only run to -inf, where p = 0.
    p = torch.softmax((logits - logits.max()) / temperature, 0)
    if top_k or top_p < 1:
        ordered, numbers = p.sort(descending=True, stable=True)
        kept = ordered.cumsum(0) - ordered < top_p  # those before it do not have enough: the first is always kept
        if top_k:
            kept[top_k:] = False
        p = torch.zeros_like(p).index_put_((numbers[kept],), ordered[kept])
    return int(torch.multinomial(p, 1, generator=generator))


def _stream(
    model: LanguageModel, start: Tensor, length: int, choose: Callable[[Tensor, Generator], int], generator: Generator
) -> Iterator[str]:
    device = model.output.weight.device
    decoder = model.vocabulary.decoder()
    if model.vocabulary.kind == "words":
        decoder.feed(int(start[-1]))  # whether a space follows depends on what stands before
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
            number = choose(last, generator)
            numbers = torch.tensor([[number]])
            if piece := decoder.feed(number):
                yield piece
        if piece := decoder.close():
            yield piece
    finally:
        model.train(training)
