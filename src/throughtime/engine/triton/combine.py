"""The one function that a kernel hands to Triton's scan; imported where a kernel is made, for it needs Triton."""

from __future__ import annotations

from triton.runtime.jit import JITFunction


def _follow(a, b, c, d):
    """v -> a v + b, and after it v -> c v + d, as one such map."""
    return c * a, c * b + d


# Not by triton.jit, which makes something else of it where the interpreter is asked for as this is imported.
follow = JITFunction(_follow)
