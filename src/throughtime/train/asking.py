"""What the data of a run ask for: how far back its targets depend on its inputs, measured on the training part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from throughtime.diagnosis import dependence
from throughtime.diagnosis.asked import Asked, measure_data, measure_given
from throughtime.diagnosis.sequences import Sequences as Seen
from throughtime.diagnosis.sequences import Unseen, symbols
from throughtime.train.config import RunConfig
from throughtime.train.data.batch import Source
from throughtime.train.data.generated import Generated
from throughtime.train.data.prepared import Prepared
from throughtime.train.data.schema import TextSchema
from throughtime.train.data.sequences import Sequences
from throughtime.train.data.streams import Streams

MOST = 500_000  # symbols that the data horizon of a text is measured on
SHUFFLES = 10
STEPS, SEQUENCES = 20_000, 4000  # of other data, at most


def asked(streams: Streams, most: int = MOST) -> Asked:
    """How far back the next symbol of a text depends on single ones before it, in bits (`dependence`), with the text
    itself, for what far symbols add to near ones.

    What is less than 1 % of the most that any one says does not count.
    """
    inputs, targets = streams.inputs.flatten()[:most].long(), streams.targets.flatten()[:most].long()
    # Near lags one by one, far ones by a factor of about 1.2, as far as the baseline can move the text out of reach.
    lags = sorted({*range(17), *(round(16 * 1.2**i) for i in range(28))})
    far = max(0, min(len(inputs) - 1000, (len(inputs) - SHUFFLES) // 5))
    pairs = dependence(
        inputs, targets, [d for d in lags if d <= far], shuffles=SHUFFLES, fraction=0.01, baseline="shift"
    )  # fmt: skip
    return Asked(pairs, series=(inputs, targets))


def asked_of(data: Prepared, config: RunConfig) -> Asked:
    """The data horizon of a run of any kind: in bits for a text, else by the dependence of features (`dependence`).

    Sequences of different lengths are cut to one: before a label their last steps, else their first ones. Of a
    generated task sequences are drawn for this. Raises `Unseen` where the data are too few or of no use.
    """
    source: Source = data.train
    if isinstance(source, Streams):
        if isinstance(data.schema, TextSchema):
            return asked(source)
        x, y = source.inputs.flatten(0, 1)[:STEPS], source.targets.flatten(0, 1)[:STEPS]
        return measure_given(x, y if y.dim() == 1 or y.is_floating_point() else y.float())
    if isinstance(source, Generated):
        seen = _of_task(source, config)
    elif isinstance(source, Sequences):
        seen = _alike(source.inputs, source.targets, source.scored, source.at_end)
    else:
        raise Unseen(f"it is not measured for data of the kind {type(source).__name__}")
    found = measure_data([seen])
    return found.folded() if getattr(config, "bidirectional", False) else found


def _of_task(source: Generated, config: RunConfig) -> Seen:
    sample = source.task.sample(SEQUENCES, torch.Generator().manual_seed(config.seed))
    lengths = [len(sample.inputs)] * SEQUENCES if sample.lengths is None else sample.lengths.tolist()
    x, y, scored = ([v[:n, b] for b, n in enumerate(lengths)] for v in (sample.inputs, sample.targets, sample.scored))
    if all(int(s.sum()) == 1 and bool(s[-1]) for s in scored):  # what it asks for comes at the end
        return _alike(x, [v[-1:] for v in y], None, True)
    return _alike(x, y, scored, False)


def _alike(inputs: Sequence[Tensor], targets: Sequence[Tensor], scored: Sequence[Tensor] | None, at_end: bool) -> Seen:
    """Sequences of one length: the one that leaves the most steps in all."""
    lengths = torch.tensor([len(v) for v in inputs]).sort(descending=True).values
    L = int(lengths[int((lengths * torch.arange(1, len(lengths) + 1)).argmax())])
    if L < 2:
        raise Unseen("the sequences have one step each, so there is no lag")
    kept = [n for n, v in enumerate(inputs) if len(v) >= L][:SEQUENCES]
    x = torch.stack([inputs[n][-L:] if at_end else inputs[n][:L] for n in kept])
    y = torch.stack([targets[n][0] if at_end else targets[n][:L] for n in kept])
    if not at_end and scored is not None and not y.is_floating_point():
        y = y.long().masked_fill(~torch.stack([scored[n][:L] for n in kept]), -1)
    x, y = _plain(x, 2), _plain(y, 1 if at_end else 2)
    return Seen(x, y, "label" if at_end else "each")


def _plain(v: Tensor, whole: int) -> Tensor:
    """Symbols as whole numbers, which have `whole` dimensions; all else as float64 with one more."""
    if v.dim() == whole:
        return v.double()[..., None] if v.is_floating_point() else v.long()
    return symbols(v.double())
