"""The model: what stands for a step's input, recurrent layers, and a linear map to what the head reads."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from throughtime import cells
from throughtime.errors import ConfigError
from throughtime.nn import Recurrent
from throughtime.train.config import RunConfig
from throughtime.train.data.schema import Schema, TextSchema
from throughtime.train.data.vocabulary import Vocabulary
from throughtime.train.kinds import LMConfig


class SequenceModel(nn.Module):
    """Reads steps and says at each, or at the end of a sequence, what its schema's head makes a distribution of.

        e_t = E[x_t]  or  E x_t  or  x_t      y_t = recurrent(e_t, state)      outputs_t = V dropout(y_t) + b

    Initialised as torch initialises its own layers. Raises `ConfigError` for a cell that does not exist.
    """

    def __init__(self, config: RunConfig, schema: Schema) -> None:
        super().__init__()
        if config.cell not in cells.NAMES:
            close = difflib.get_close_matches(config.cell, cells.NAMES, 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigError(f"there is no cell {config.cell!r}{hint}; the cells are {', '.join(cells.NAMES)}")
        self.config, self.schema = config, schema
        if schema.symbols and config.input_noise >= 1:
            raise ConfigError(
                f"input_noise is a chance where symbols are read, less than 1; got {config.input_noise:g}"
            )
        size = config.embedding or schema.width
        self.embedding: nn.Module
        if schema.symbols:
            self.embedding = nn.Embedding(schema.symbols, size)
        else:
            self.embedding = nn.Linear(schema.width, size) if config.embedding else nn.Identity()
        self.recurrent = Recurrent(
            cells.by_name(config.cell),
            size,
            config.hidden,
            num_layers=config.layers,
            dropout=config.dropout if config.layers > 1 else 0.0,  # between layers, so one layer has none
            skip=config.skip,
            bidirectional=getattr(config, "bidirectional", False),
        )
        self.dropout = nn.Dropout(config.dropout)
        self.directions = 2 if self.recurrent.bidirectional else 1
        shown = config.hidden * self.directions * (config.layers if config.skip else 1)  # skip: every layer is shown
        self.output = nn.Linear(shown, schema.head.size)

    def forward(self, x: Tensor, state: Any = None, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        """Outputs [T, B, size], or [1, B, size] at the ends of the sequences, and the state to carry on with.

        x: [T, B] numbers of symbols, or [T, B, D]. lengths: [B] from long to short, where they differ.
        """
        if self.training and self.config.input_noise:
            x = disturbed(x, self.config.input_noise, lengths)
        e = self.embedding(x)
        if lengths is not None:
            y, state = self.recurrent(pack_padded_sequence(e, lengths), state)
            y = pad_packed_sequence(y)[0]
        else:
            y, state = self.recurrent(e, state)
        return self.output(self.dropout(self._last(state) if self.schema.at_end else y)), state

    def _last(self, state: Any) -> Tensor:
        """What is shown at the last step of each sequence, of either direction where there are two: [1, B, ...]."""
        h = state if isinstance(state, Tensor) else state[0]
        h = h if self.config.skip else h[-self.directions :]
        return h.transpose(0, 1).flatten(1).unsqueeze(0)


def disturbed(x: Tensor, noise: float, lengths: Tensor | None = None) -> Tensor:
    """Inputs of a model with noise: a little wrong, as those are that it writes itself.

    Numbers [T, B, D] get N(0, noise^2) added (Graves 2013). Each symbol of [T, B] is, with this chance, replaced by one
    from anywhere among them, so that the commoner ones come in more often (unigram noising, Xie 2017). lengths: as in
    the model's call; what stands behind a sequence's end is not drawn. Drawn from torch's default generator.
    """
    if x.is_floating_point():
        return x + noise * torch.randn_like(x)
    pool = x.flatten()
    if lengths is not None:
        pool = x[torch.arange(x.shape[0], device=x.device).unsqueeze(1) < lengths.to(x.device)]
    others = pool[torch.randint(len(pool), x.shape, device=x.device)]
    return torch.where(torch.rand(x.shape, device=x.device) < noise, others, x)


class LanguageModel(SequenceModel):
    """Predicts each next symbol of a text from all before it; knows its own vocabulary.

    outputs: logits [T, B, V] of the symbol after each of the numbers [T, B].
    """

    def __init__(self, config: LMConfig, vocabulary: Vocabulary) -> None:
        super().__init__(config, TextSchema(vocabulary))
        self.config: LMConfig = config
        self.vocabulary = vocabulary


def build(config: RunConfig, schema: Schema) -> SequenceModel:
    """The model of a run, freshly drawn."""
    if isinstance(config, LMConfig) and isinstance(schema, TextSchema):
        return LanguageModel(config, schema.vocabulary)
    return SequenceModel(config, schema)
