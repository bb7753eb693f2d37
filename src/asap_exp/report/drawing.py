"""Figures that are files: drawn by Agg, whatever backend of its own matplotlib is told to use."""

from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Known to no window, so that none shows it and nobody needs to close it."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def subplots(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    """A figure and its axes."""
    figure = new_figure(width, height)
    return figure, figure.subplots(**grid)
