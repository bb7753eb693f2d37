"""Figures for files, drawn by Agg whatever matplotlib's backend is."""

from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Return a figure without a window, so that it need not be closed."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def subplots(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    """Return a figure and its axes."""
    figure = new_figure(width, height)
    return figure, figure.subplots(**grid)
