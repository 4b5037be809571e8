"""throughtime: see, understand and cure the gradient through time of recurrent networks."""

__version__ = "0.1.0"
