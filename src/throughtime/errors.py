"""Every error that throughtime raises on purpose: what was expected, what came, what to do."""

from __future__ import annotations


class ThroughtimeError(Exception):
    """Base of all errors of this package; the message is written for the user, on one line."""


class CellError(ThroughtimeError, TypeError):
    """A cell's declaration or its `step` is not one that the engine can run."""


class ShapeError(ThroughtimeError, ValueError):
    """A tensor's shape, dtype or device does not fit the cell or the other tensors."""


class BackendError(ThroughtimeError, RuntimeError):
    """The backend that was asked for cannot do what was asked of it."""


class FlowError(ThroughtimeError, ValueError):
    """The gradient through time cannot be measured on what was given."""


class NoFlowError(FlowError):
    """No gradient enters a recurrence: the loss does not depend on it."""


class BrokenFlowError(FlowError):
    """A NaN or an infinity stands where the gradient through time was to be measured; the message says what, where."""


class DataError(ThroughtimeError, ValueError):
    """A data file is missing, empty, undecodable, or too short for the sizes asked for."""


class ConfigError(ThroughtimeError, ValueError):
    """An option has a value that makes no sense, or two options contradict each other."""


class CheckpointError(ThroughtimeError, RuntimeError):
    """A run or a checkpoint cannot be written or read: damaged, truncated, foreign, of another version."""


class NonFiniteError(ThroughtimeError, ArithmeticError):
    """Training met a NaN or an infinity; the message names what, where and the last good checkpoint."""


class ReportError(ThroughtimeError, OSError):
    """A page cannot be written where it was asked for."""


class GuardStopped(NonFiniteError):
    """The guard has done what its rule allows and stops; the message says what went wrong, where, what was tried."""


class ProcessError(ThroughtimeError, RuntimeError):
    """Of several processes that train together another one failed or was lost."""


class ExportError(ThroughtimeError, RuntimeError):
    """A model cannot be written in another format, or what was written does not compute what the model computes."""
