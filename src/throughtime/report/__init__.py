"""Pages for people: one self-contained HTML file that shows how the gradient went through time."""

from __future__ import annotations

from throughtime.errors import ReportError
from throughtime.report.diagnoses import diagnosis_page, report
from throughtime.report.view import (
    DependenceView,
    FindingView,
    GatesView,
    ModelView,
    Page,
    ReadingView,
    SampleView,
    TableView,
)
from throughtime.report.write import render, write

__all__ = [
    "DependenceView",
    "FindingView",
    "GatesView",
    "ModelView",
    "Page",
    "ReadingView",
    "ReportError",
    "SampleView",
    "TableView",
    "diagnosis_page",
    "render",
    "report",
    "write",
]
