"""Figures for files, drawn by Agg whatever matplotlib's backend is, and their titles."""

import io
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from asap_exp.core.escaping import on_figure
from asap_exp.report.captions import group_title
from asap_exp.report.groups import Group


def new_figure(width: float, height: float) -> Figure:
    """Return a figure without a window, so that it need not be closed."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def subplots(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    """Return a figure and its axes."""
    figure = new_figure(width, height)
    return figure, figure.subplots(**grid)


def heading(group: Group, more: str = "") -> str:
    """Return the group's title and `more`, wrapped to fit above a figure."""
    return on_figure(group_title(group) + more, 90)


def image(figure: Figure, form: str = "png") -> bytes:
    """Return a figure as a file of this format, the same bytes every time."""
    buffer = io.BytesIO()
    undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context({"svg.hashsalt": "asap_exp", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=form, dpi=144, metadata=undated[form])
    return buffer.getvalue()
