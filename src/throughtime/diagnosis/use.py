"""What a trained model uses: how far back changing its input still changes its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.diagnosis.chance import ALPHA, between, farthest, interval, resampling, student
from throughtime.errors import FlowError
from throughtime.flow import Horizon, drawing
from throughtime.plain import Plain

Losses = Callable[[Tensor], Tensor]
LEAST = 8  # sequences


@dataclass(frozen=True)
class Use(Plain):
    """By how much a model's loss rises when its inputs from some lag on are replaced by others, as plain data.

    lags:  the lags d measured, in steps, ascending.
    rise:  for each, the mean rise of the loss when the inputs d steps back and farther are others, in the loss's units.
    error: its standard error over the sequences.           loss: the mean loss with all inputs as they are.
    fraction, threshold: a lag counts as used if its rise is above `fraction` of the largest and above `threshold` of
           its standard errors, which by chance happens at one of all lags with a probability of 1 % only.
    interval: the 95 % interval of the horizon, over sequences; None if not asked for.
    """

    lags: tuple[int, ...]
    rise: tuple[float, ...]
    error: tuple[float, ...]
    loss: float
    fraction: float
    threshold: float
    interval: tuple[Horizon, Horizon] | None = None

    def horizon(self) -> Horizon:
        """The use horizon: the largest lag, in steps, whose replacement still raises the loss; `at_least` if it is the
        largest measured. Horizon(-1, False) if not even replacing everything raises it."""
        rise, error = (torch.tensor(v, dtype=torch.float64) for v in (self.rise, self.error))
        at = int(farthest(_beyond(rise, error, self.threshold, self.fraction), self.lags))
        return Horizon(at, at == self.lags[-1])

    def plot(self, ax: Any = None) -> Any:
        """Draws the rise of the loss by lag, in a band of two standard errors, with matplotlib; gives the axes.

        ax: where to draw; None for a new figure. Raises ThroughtimeError where matplotlib is missing.
        """
        ax = drawing.lines(
            {"rise": self.rise}, ax, self.lags, xlabel="others from this lag on (steps)", ylabel="rise of the loss"
        )
        ends = [[r + k * e for r, e in zip(self.rise, self.error, strict=True)] for k in (-2, 2)]
        ax.fill_between(self.lags, *ends, alpha=0.2)
        ax.axhline(0, linestyle="--", linewidth=0.8, color="0.4")
        return ax

    def __str__(self) -> str:
        far = self.horizon()
        spread = f" (95 %: {between(self.interval)})" if self.interval else ""
        lines = [
            f"Use of the past, loss {self.loss:.4g} with all of it",
            "  no input is used" if far.steps < 0 else f"  horizon {far}{spread}",
        ]
        shown = {0, len(self.lags) - 1, *(k for k, d in enumerate(self.lags) if d == far.steps)}
        lines += [
            f"  others from lag {self.lags[k]:<5} on: loss {self.rise[k]:+.3g} (+- {self.error[k]:.1g})"
            for k in sorted(shown)
        ]
        return "\n".join(lines)


@torch.no_grad()
def use_horizon(
    losses: Losses,
    inputs: Tensor,
    lags: Sequence[int],
    *,
    batch_first: bool = False,
    ends: int = 4,
    fraction: float = 0.001,
    resamples: int = 200,
    seed: int = 0,
) -> Use:
    """Measures how far back a model uses its input (Khandelwal 2018): the loss when what is older is replaced.

        rise(d) = mean of  L_t(x'_1 ... x'_{t-d}, x_{t-d+1} ... x_t)  -  L_t(x_1 ... x_t)

    x' is another sequence of the batch, at the same steps, so that what replaces looks like the data. Lag 0 replaces
    everything. Compared are the same steps of the same sequences, and each sequence is one observation.

    losses: from inputs to the loss at every step, [T, B] ([B, T] if batch_first), or one for each sequence, [B]; with
            one loss at the end the lags are counted from the last step. `step_losses` makes one from a model.
    inputs: [T, B] or [T, B, D] ([B, T, ...] if batch_first), of at least 8 sequences: cut a long one into pieces.
    ends:   the steps t, spread over the sequence, that are looked back from; the model runs about ends * lags times.
    fraction: a lag whose rise is a smaller share of the largest rise does not count as used.
    resamples: bootstrap resamples of the sequences for the 95 % interval; 0 for none.

    Raises FlowError for shapes that do not fit, too few sequences or steps, losses that are NaN, and a model that gives
    another loss when it is asked again (dropout that is on, a state that is carried).
    """
    lags = tuple(sorted({int(d) for d in lags}))
    _check(inputs, lags, batch_first, ends, fraction)
    x = inputs.transpose(0, 1) if batch_first else inputs
    T, B = x.shape[:2]
    generator = torch.Generator().manual_seed(seed)

    def run(first: int) -> Tensor:
        """The losses with the first steps replaced: [T, B], or [1, B] for one at the end."""
        donor = 1 + int(torch.randint(B - 1, (1,), generator=generator))
        mixed = torch.cat([x[:first].roll(donor, 1), x[first:]]) if first else x
        return _losses(losses(mixed.transpose(0, 1) if batch_first else mixed), T, B, batch_first)

    whole, replaced = run(0), run(T)
    if not torch.allclose(run(0), whole, rtol=1e-5, atol=1e-7):
        raise FlowError("the losses came out differently when asked again; call eval() and start from a fresh state")
    offset = T - len(whole)  # 0, or T - 1 where only the last step has a loss
    reacts = {t + offset for t in (replaced != whole).any(1).nonzero().flatten().tolist()}
    diff = torch.zeros(len(lags), B, dtype=torch.float64)
    seen = torch.zeros(len(lags), 1, dtype=torch.float64)
    for cut in sorted({t - d + 1 for t in _ends(reacts, lags[-1], ends) for d in lags}):
        rise = run(cut) - whole
        for n, d in enumerate(lags):
            t = cut + d - 1
            if t in reacts:
                diff[n] += rise[t - offset]
                seen[n] += 1
    diff /= seen.clamp(min=1)
    limit = student(ALPHA / len(lags), B - 1)
    weights = resampling(resamples, B, generator)
    mean = weights @ diff.T / B  # [1 + resamples, lags]
    error = ((weights @ diff.T.square() / B - mean.square()).clamp(min=0) / (B - 1)).sqrt()
    found = farthest(_beyond(mean[:1], error[:1], limit, fraction), lags)
    span = None
    if resamples:
        # A resample differs from the truth by the noise of the data and its own, twice the variance.
        span = interval(farthest(_beyond(mean[1:], error[1:], limit * 2**0.5, fraction), lags), int(found), lags)
    return Use(lags, tuple(mean[0].tolist()), tuple(error[0].tolist()), whole.mean().item(), fraction, limit, span)


def step_losses(
    model: nn.Module | Callable[[Tensor], Any],
    targets: Tensor,
    loss: Callable[..., Tensor] = nn.functional.cross_entropy,
) -> Losses:
    """What `use_horizon` asks for, from a model, its targets and a loss of torch.nn.functional.

    model:   from inputs to the output, or to a tuple whose first is the output, as torch's recurrent layers give.
    targets: as the output without its last dimension for classes [T, B], or shaped as the output; one a sequence, [B]
             or [B, K], for a label at the end. The layout [B, T] serves as well.
    loss:    called as loss(output, targets, reduction="none"): cross_entropy, mse_loss, ...; it is averaged over what
             is left besides steps and sequences. Raises FlowError where output and targets do not fit.
    """

    def losses(x: Tensor) -> Tensor:
        out = model(x)
        y: Tensor = out[0] if isinstance(out, tuple | list) else out
        classes = not targets.is_floating_point()
        lead = targets.dim() if classes else min(2, targets.dim() - 1) or 1
        if y.shape[:lead] != targets.shape[:lead] or (not classes and y.shape != targets.shape):
            raise FlowError(f"the model's output {list(y.shape)} does not fit the targets {list(targets.shape)}")
        shape = targets.shape[:lead]
        flat = loss(y.flatten(0, lead - 1), targets.flatten(0, lead - 1), reduction="none")
        return flat.reshape(*shape, -1).mean(-1)

    return losses


def _beyond(rise: Tensor, error: Tensor, limit: float, fraction: float) -> Tensor:
    least = fraction * rise.amax(-1, keepdim=True)
    return (rise > 0) & (rise > least) & (rise > limit * error)


def _ends(reacts: set[int], far: int, ends: int) -> list[int]:
    """Steps to look back from: among those whose loss reacts to the input, spread from the first with a past of `far`
    steps to the last."""
    late = sorted(t for t in reacts if t >= far)
    if not reacts:
        return []
    if not late:
        raise FlowError(
            f"the loss reacts to the input up to step {max(reacts)} only, and there is no lag of {far} there"
        )
    return sorted({late[round(k * (len(late) - 1) / max(1, ends - 1))] for k in range(ends)} | {late[-1]})


def _losses(value: Any, T: int, B: int, batch_first: bool) -> Tensor:
    want = [B, T] if batch_first else [T, B]
    if not isinstance(value, Tensor) or list(value.shape) not in (want, [B]):
        came = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise FlowError(f"losses must give one loss a step, {want}, or one a sequence, [{B}]; came {came}")
    if not value.isfinite().all():
        raise FlowError("the losses hold NaN or infinite numbers; nothing can be compared with them")
    value = value.cpu().double()
    if value.dim() == 1:
        return value[None]
    return value.T if batch_first else value


def _check(inputs: Tensor, lags: tuple[int, ...], batch_first: bool, ends: int, fraction: float) -> None:
    if not isinstance(inputs, Tensor) or inputs.dim() < 2:
        came = list(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise FlowError(f"inputs must be a tensor [T, B] or [T, B, D]; came {came}")
    if not lags or lags[0] < 0:
        raise FlowError(f"lags must be whole numbers >= 0, at least one; came {lags}")
    T, B = (inputs.shape[1], inputs.shape[0]) if batch_first else inputs.shape[:2]
    if B < LEAST:
        raise FlowError(f"at least {LEAST} sequences are needed; came {B}. Cut a long sequence into pieces")
    if lags[-1] >= T:
        raise FlowError(f"sequences of {T} steps have no lag of {lags[-1]}; the largest is {T - 1}")
    if ends < 1 or not 0 <= fraction < 1:
        raise FlowError(f"ends must be at least 1 and fraction lie in [0, 1); came {ends} and {fraction}")
