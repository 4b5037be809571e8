"""The remedies that `prescribe` tries: each changes a model or its training, and knows the code that does the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from throughtime.cures.clip import ClipNorm, Clipper
from throughtime.cures.init import orthogonal_, spectral_radius_
from throughtime.cures.init_gates import chrono_, forget_gate_bias_
from throughtime.cures.omega_penalty import omega_captured
from throughtime.cures.swap import swap_cell
from throughtime.flow.capture import Capture
from throughtime.plain import Plain


@dataclass
class Training:
    """What a remedy may change: the model (a copy), the learning rate by a factor, clipping, a penalty on what ran."""

    model: nn.Module
    rate: float = 1.0
    clip: Clipper | None = None
    penalty: Callable[[Capture, nn.Module], Tensor] | None = None


@dataclass(frozen=True)
class Remedy(Plain, ABC):
    """One change. A remedy of your own is a frozen dataclass with `name`, `apply` and `code`.

    renews: whether the model has new parameters afterwards, so that the optimiser must be made anew.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """A few words for the table."""

    @property
    def renews(self) -> bool:
        return False

    @abstractmethod
    def apply(self, to: Training) -> None:
        """Makes the change."""

    def code(self) -> str:
        """Lines to paste before the training loop, for a `model` and an `optimizer`, with `cures` imported."""
        return ""

    def loop(self) -> str:
        """Lines to paste between loss.backward() and optimizer.step()."""
        return ""


@dataclass(frozen=True)
class SwapCell(Remedy):
    """`throughtime.cures.swap_cell` on the module `at` of the model; "" is all of it."""

    to: str
    at: str = ""

    @property
    def name(self) -> str:
        return f"{self.to} cell"

    @property
    def renews(self) -> bool:
        return True

    def apply(self, to: Training) -> None:
        swap_cell(to.model.get_submodule(self.at), self.to)

    def code(self) -> str:
        return f'cures.swap_cell({_place(self.at)}, "{self.to}")'


@dataclass(frozen=True)
class Chrono(Remedy):
    """`throughtime.cures.chrono_`: memories spread over 2 .. longest steps."""

    longest: int
    at: str = ""

    @property
    def name(self) -> str:
        return f"chrono to {self.longest} steps"

    def apply(self, to: Training) -> None:
        chrono_(to.model.get_submodule(self.at), self.longest)

    def code(self) -> str:
        return f"cures.chrono_({_place(self.at)}, longest={self.longest})"


@dataclass(frozen=True)
class GateBias(Remedy):
    """`throughtime.cures.forget_gate_bias_`: of the gate that keeps the memory, or of `gate`."""

    value: float
    gate: str = ""
    at: str = ""

    @property
    def name(self) -> str:
        return f"bias of {self.gate or 'the keeping gate'} {self.value:g}"

    def apply(self, to: Training) -> None:
        forget_gate_bias_(to.model.get_submodule(self.at), self.value, gate=self.gate or None)

    def code(self) -> str:
        gate = f', gate="{self.gate}"' if self.gate else ""
        return f"cures.forget_gate_bias_({_place(self.at)}, {self.value:g}{gate})"


@dataclass(frozen=True)
class Orthogonal(Remedy):
    """`throughtime.cures.orthogonal_`: fresh orthogonal recurrent weights."""

    at: str = ""

    @property
    def name(self) -> str:
        return "orthogonal U"

    def apply(self, to: Training) -> None:
        orthogonal_(to.model.get_submodule(self.at))

    def code(self) -> str:
        return f"cures.orthogonal_({_place(self.at)})"


@dataclass(frozen=True)
class SpectralRadius(Remedy):
    """`throughtime.cures.spectral_radius_`: U scaled, its directions kept."""

    radius: float = 1.0
    at: str = ""

    @property
    def name(self) -> str:
        return f"spectral radius {self.radius:g}"

    def apply(self, to: Training) -> None:
        spectral_radius_(to.model.get_submodule(self.at), self.radius)

    def code(self) -> str:
        return f"cures.spectral_radius_({_place(self.at)}, {self.radius:g})"


@dataclass(frozen=True)
class LearningRate(Remedy):
    """Every learning rate of the optimiser times a factor."""

    factor: float

    @property
    def name(self) -> str:
        return f"learning rate x {self.factor:g}"

    def apply(self, to: Training) -> None:
        to.rate *= self.factor

    def code(self) -> str:
        return f'for group in optimizer.param_groups:\n    group["lr"] *= {self.factor:g}'


@dataclass(frozen=True)
class Clip(Remedy):
    """`throughtime.cures.ClipNorm`, in the place of the clipping that there was."""

    max_norm: float

    @property
    def name(self) -> str:
        return f"clip at {self.max_norm:.3g}"

    def apply(self, to: Training) -> None:
        to.clip = ClipNorm(self.max_norm, nonfinite="leave", keep=1)

    def code(self) -> str:
        return f"clip = cures.ClipNorm({self.max_norm:.3g})"

    def loop(self) -> str:
        return "clip(model)"


@dataclass(frozen=True)
class OmegaPenalty(Remedy):
    """`throughtime.cures.omega_captured` times `weight`, divided by the steps, added to the loss at each step."""

    weight: float = 2.0

    @property
    def name(self) -> str:
        return f"Omega x {self.weight:g}"

    def apply(self, to: Training) -> None:
        to.penalty = self._of

    def _of(self, captured: Capture, model: nn.Module) -> Tensor:
        T = max(len(c.recurrence.output) for c in captured.recurrences)
        return self.weight / T * omega_captured(captured, model)

    def loop(self) -> str:
        return (
            "# loss and loss.backward() stand inside `with throughtime.capture(model) as captured:`; T: time steps\n"
            f"({self.weight:g} / T * cures.omega_captured(captured, model)).backward()"
        )


@dataclass(frozen=True)
class Candidate(Plain):
    """Some remedies that are tried together, and the reason why: the finding or the number that speaks for them."""

    remedies: tuple[Remedy, ...]
    reason: str = ""

    @property
    def name(self) -> str:
        """The names of its remedies; "nothing" for none."""
        return " + ".join(r.name for r in self.remedies) or "nothing"

    def apply(self, to: Training) -> None:
        """Makes all its changes, in order."""
        for remedy in self.remedies:
            remedy.apply(to)

    def code(self) -> str:
        """The change as code to paste, for a `model` and an `optimizer` that are there; "" for nothing."""
        if not self.remedies:
            return ""
        lines = ["from throughtime import cures", ""]
        if any("throughtime." in r.loop() for r in self.remedies):
            lines.insert(0, "import throughtime")
        before = [r.code() for r in self.remedies if not isinstance(r, LearningRate)]
        lines += [line for line in before if line]
        if any(r.renews for r in self.remedies):
            lines.append("# the parameters are new: make the optimizer anew here")
        lines += [r.code() for r in self.remedies if isinstance(r, LearningRate)]
        loops = [r.loop() for r in self.remedies if r.loop()]
        if loops:
            lines += ["", "# in the loop, between loss.backward() and optimizer.step():", *loops]
        return "\n".join(lines)


def _place(at: str) -> str:
    if not at:
        return "model"
    plain = all(part.isidentifier() for part in at.split("."))
    return f"model.{at}" if plain else f'model.get_submodule("{at}")'
