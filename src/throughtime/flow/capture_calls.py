"""What is kept of one call of a recurrent module while a model runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from throughtime import cells
from throughtime.cells import Cell
from throughtime.flow.capture_graph import Slot
from throughtime.flow.capture_weights import CELLS, FUSED, Snapshots
from throughtime.flow.randomness import RandomState, drawing_from
from throughtime.nn.layer import StackedLayer
from throughtime.nn.layout import Layout, enter
from throughtime.nn.stack import Weights


def kind_of(module: nn.Module) -> str | None:
    """ "layer" for torch's recurrent layers and ours, "cell" for torch's cells, "own" for a module of the user's, which
    may turn out to be one step of a recurrence; None for all others."""
    if isinstance(module, StackedLayer):
        return "layer"
    if parametrize.is_parametrized(module):
        # To read a parametrised weight may change it (spectral norm); the layers keep what they used, cells do not.
        return "layer" if isinstance(module, FUSED) else "own" if isinstance(module, CELLS) else _own(module)
    for kind, types in (("layer", FUSED), ("cell", CELLS)):
        for t in types:
            if isinstance(module, t):
                return kind if type(module).forward is t.forward else "own"
    return _own(module)


def _own(module: nn.Module) -> str | None:
    return None if type(module).__module__.split(".")[0] == "torch" else "own"


@dataclass(eq=False)
class Call:
    """One call. number: the how-manieth of its module, from 0. order: among all calls of the model.

    given, slots: the states given and returned; ends: where in autograd's graph the call's own part of it ends;
    before, after: the calls that it continues, and that continue it; carried: how the state came from an earlier
    call ("attached", "detached"); source: from which.
    """

    module: nn.Module
    name: str
    number: int
    order: int
    inside: tuple[Call, ...]
    given: list[Tensor] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    ends: set[Any] = field(default_factory=set)
    ready: bool = False  # all that goes in was read
    again: bool = False  # it ran while a backward pass did, as checkpointing does
    before: Call | None = None
    after: Call | None = None
    carried: str | None = None
    source: str | None = None

    def chain(self) -> list[Call]:
        """This call and those that continue it."""
        calls, here = [], self
        while here is not None:
            calls.append(here)
            here = here.after  # type: ignore[assignment]
        return calls

    @property
    def reached(self) -> bool:
        """Whether a gradient came back to it."""
        return any(slot.entered is not None for slot in self.slots)

    def release(self) -> None:
        """Lets go of the graph."""
        for slot in self.slots:
            slot.release()
        self.given, self.ends = [], set()


@dataclass(eq=False)
class LayerCall(Call):
    """A call of a layer, or of a cell, which is a layer that takes one step.

    x: [T, B, D]. first: the initial states, each [layers * dirs, B, .]. y: the output, None for a cell.
    shown: the first few steps of what came out, to compare with.
    """

    is_cell: bool = False
    cell: Cell = field(default_factory=cells.LSTM)
    layers: list[list[Weights]] = field(default_factory=list)
    skip: bool = False
    truncated: bool = False
    clip: float | None = None
    backend: str = "auto"
    x: Tensor = field(default_factory=lambda: torch.empty(0))
    layout: Layout = field(default_factory=lambda: Layout(False, True))
    first: list[Tensor] | None = None
    y: Slot | None = None
    shown: Tensor | None = None
    dropout: float = 0.0
    random: RandomState | None = None
    dtype: torch.dtype = torch.float32

    @property
    def reached(self) -> bool:
        return super().reached or (self.y is not None and self.y.entered is not None)

    def release(self) -> None:
        super().release()
        if self.y is not None:
            self.y.release()

    def masks(self) -> list[Tensor | None] | None:
        """What dropout multiplied the input of each layer by [T, B, .], drawn once more as it was; None without."""
        if self.dropout == 0 or len(self.layers) == 1 or self.random is None:
            return None
        T, B = self.x.shape[:2]
        gates = len(self.cell.gates)
        width = sum(
            w.weight_ih.shape[0] // gates if w.weight_hh is None else w.weight_hh.shape[1] for w in self.layers[0]
        )
        ones = torch.ones(T, B, width, dtype=self.dtype, device=self.x.device)
        with drawing_from(self.random), torch.no_grad():
            drawn = [self.layout.dropout(ones, self.dropout).double() for _ in self.layers[1:]]
        return [None, *drawn]

    def state_order(self, g: Tensor) -> Tensor:
        """What belongs to a state in the user's layout -> [layers * dirs, B, .]."""
        if self.is_cell:
            return g[None] if g.dim() == 2 else g[None, None]
        return self.layout.state_in(g)

    def output_order(self, g: Tensor) -> Tensor:
        """What belongs to the output in the user's layout -> [T, B, .]."""
        if self.layout.packed is not None:
            return self.layout.padded(g)
        if not self.layout.batched:
            return g[:, None]
        return g.transpose(0, 1) if self.layout.batch_first else g


@dataclass(eq=False)
class OwnCall(Call):
    """A call of a module of the user's own; `given` are all tensors that it took, `slots` all that it returned.

    returned: for each tensor returned, the slot that it is; None for one that cannot have a gradient.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    versions: list[int] = field(default_factory=list)
    random: RandomState | None = None
    returned: list[Slot | None] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    links: tuple[tuple[int, int], ...] = ()  # from the call before: (where returned there, where given here)
    weights: dict[str, Tensor] | None = None  # in chains only
    modes: list[tuple[nn.Module, bool]] = field(default_factory=list)
    walked: bool = False


def read_used(call: LayerCall, snapshots: Snapshots) -> None:
    """Takes the weights of a call that has run from what the layer kept, where it computed them as it began."""
    if isinstance(call.module, FUSED) and parametrize.is_parametrized(call.module):
        call.layers = snapshots.layers(call.module)


def cell_of(module: Any) -> Cell:
    """The equations of a layer or a cell."""
    if isinstance(module, StackedLayer):
        return module.step_cell()
    if isinstance(module, nn.LSTMCell) or (isinstance(module, nn.LSTM) and not module.proj_size):
        return cells.LSTM()
    if isinstance(module, nn.LSTM):
        return cells.ProjectedLSTM()
    return cells.GRU() if isinstance(module, nn.GRU | nn.GRUCell) else cells.Simple(module.nonlinearity)


def read_layer(call: LayerCall, arguments: dict[str, Any], snapshots: Snapshots) -> None:
    """Fills in what goes into a call, from its arguments by name (input, state)."""
    module: Any = call.module
    source = arguments["input"]
    call.is_cell = isinstance(module, CELLS)
    call.cell, call.layers = cell_of(module), snapshots.layers(module)
    if call.is_cell:
        x = source.detach()
        call.x = (x[None] if x.dim() == 2 else x[None, None]).clone()
    else:
        if isinstance(module, StackedLayer):
            call.skip, call.truncated, call.clip = module.skip, module.truncated, module.clip
            call.backend = module.backend
        x, call.layout = enter(source, module.batch_first)
        call.x = x.detach().clone()
        call.dropout = float(module.dropout) if module.training else 0.0
    call.dtype = call.x.dtype
    if call.given:
        call.first = [call.state_order(s.detach()).clone() for s in call.given]


def source_tensor(source: Tensor | PackedSequence) -> Tensor:
    """The tensor of an input, packed or not."""
    return source.data if isinstance(source, PackedSequence) else source
