"""A trained language model reading a text: what each character's loss sends back, and what the gates hold."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from throughtime.flow import gradient_flow
from throughtime.flow.anatomy import anatomy, tape_values
from throughtime.flow.measure import recurrences
from throughtime.flow.recurrence import Recurrence
from throughtime.report.view import ReadingView
from throughtime.train import LanguageModel
from throughtime.train.data.streams import Streams


@torch.no_grad()
def reading_view(model: LanguageModel, streams: Streams, steps: int = 300) -> ReadingView:
    """The first stream of a text, read for `steps` symbols behind the first window, which only brings the state there.

    The gradient is that of the last layer's hidden state, exact: ||dL_t/dh_k|| of the loss of symbol t + 1 in nats. Of
    an LSTM's memory, or a GRU's, what was written at k and is held at t is i_k f_{k+1} ... f_t (or 1 - u_k, and u), the
    mean over units.
    """
    window, count = streams.window_length, len(streams)
    first = 1 if count > 1 else 0
    some = [streams.window(i) for i in range(min(count, first + -(-steps // window)))]
    x = torch.cat([v[0][:, :1] for v in some[first:]])[:steps].long()
    y = torch.cat([v[1][:, :1] for v in some[first:]])[:steps].long()
    model.eval()
    state = model.recurrent(model.embedding(some[0][0][:, :1].long()))[1] if first else None
    e = model.embedding(x)

    def loss(out: Tensor) -> Tensor:
        return functional.cross_entropy(model.output(out).flatten(0, 1), y.flatten(), reduction="sum")

    with torch.enable_grad():
        flow = gradient_flow(model.recurrent, e, loss, state)
    logits = model.output(model.recurrent(e, state)[0]).double()
    bits = functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none") / math.log(2)
    symbols = [model.vocabulary.decode([int(n)]) for n in (*x[:, 0], y[-1, 0])]
    if model.vocabulary.kind == "words":
        symbols = [s if s == "\n" else f"{s} " for s in symbols]
    states = None if state is None else [s.double() for s in ([state] if isinstance(state, Tensor) else state)]
    kept, gates = _held(recurrences(model.recurrent, e.double(), states)[-1][0])
    shown = next(iter(model.recurrent.cell.states))
    return ReadingView(symbols, bits.tolist(), flow.maps[shown], kept, gates)


def _held(r: Recurrence) -> tuple[Tensor | None, dict[str, list[float]]]:
    parts = anatomy(r.cell)
    values = tape_values(r)
    gates = {name: values[number][:, 0] for name, number in parts.gates.items()}  # [T, H]
    means = {name: v.mean(-1).tolist() for name, v in gates.items()}
    if "f" in gates and "i" in gates:
        keep, written = gates["f"], gates["i"]
    elif "u" in gates:
        keep, written = gates["u"], 1 - gates["u"]
    else:
        return None, means
    T = len(keep)
    held = torch.zeros(T, T, dtype=torch.float64)
    left = torch.zeros_like(written)
    for t in range(T):  # row t from row t - 1: all that is there is multiplied by the gate, and one more is written
        now = torch.cat([left[:t] * keep[t], written[t : t + 1]]) if t else written[:1]
        held[t, : t + 1] = now.mean(-1)
        left[: t + 1] = now
    return held, means
