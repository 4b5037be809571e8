"""Pages for people: one self-contained HTML file that shows how the gradient went through time."""

from __future__ import annotations

from throughtime.errors import ReportError
from throughtime.report.view import DependenceView, ModelView, Page, SampleView
from throughtime.report.write import render, write

__all__ = ["DependenceView", "ModelView", "Page", "ReportError", "SampleView", "render", "write"]
