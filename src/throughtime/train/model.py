"""The language model: an embedding, recurrent layers, and a linear map to the next symbol's logits."""

from __future__ import annotations

import difflib
from typing import Any

from torch import Tensor, nn

from throughtime import cells
from throughtime.errors import ConfigError
from throughtime.nn import Recurrent
from throughtime.train.config import LMConfig
from throughtime.train.data import Vocabulary


class LanguageModel(nn.Module):
    """Predicts each next symbol of a text from all before it; knows its own vocabulary.

        e_t = E[x_t]      y_t = recurrent(e_t, state)      logits_t = V dropout(y_t) + b

    Initialised as torch initialises its own layers. Raises `ConfigError` for a cell that does not exist.
    """

    def __init__(self, config: LMConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        if config.cell not in cells.NAMES:
            close = difflib.get_close_matches(config.cell, cells.NAMES, 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigError(f"there is no cell {config.cell!r}{hint}; the cells are {', '.join(cells.NAMES)}")
        self.config, self.vocabulary = config, vocabulary
        self.embedding = nn.Embedding(len(vocabulary), config.embedding)
        self.recurrent = Recurrent(
            cells.by_name(config.cell),
            config.embedding,
            config.hidden,
            num_layers=config.layers,
            dropout=config.dropout if config.layers > 1 else 0.0,  # between layers, so one layer has none
            skip=config.skip,
        )
        self.dropout = nn.Dropout(config.dropout)
        shown = config.hidden * (config.layers if config.skip else 1)  # skip connections show every layer
        self.output = nn.Linear(shown, len(vocabulary))

    def forward(self, numbers: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Logits [T, B, V] of the symbol after each of `numbers` [T, B], and the state to carry on with."""
        y, state = self.recurrent(self.embedding(numbers), state)
        return self.output(self.dropout(y)), state
