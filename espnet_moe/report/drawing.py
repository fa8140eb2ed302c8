"""Pictures on disk, drawn without a window system."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from espnet_moe.files import atomic

log = logging.getLogger(__name__)

_DOTS_PER_INCH = 110
# Text as text, and the same bytes from the same numbers.
_SVG: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "espnet_moe"}


def save_figure(
    stem: Path, draw: Callable[[Any], None], formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Draw a figure and write it in each format, whole or not at all.

    Args:
        stem: The files' path without a suffix.
        draw: Draws onto an empty matplotlib figure.
        formats: Such as ``png`` and ``svg``.

    Returns:
        The files written; none where matplotlib is not installed.
    """
    try:
        # Drawing without pyplot: no window system, and half of its import.
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("no pictures: matplotlib is not installed (it comes with espnet_moe[train])")
        return []
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    written = []
    for format_ in formats:
        path = stem.with_name(f"{stem.name}.{format_}")
        metadata = {"Date": None} if format_ == "svg" else None
        with rc_context(_SVG), atomic(path) as temporary:
            figure.savefig(temporary, format=format_, dpi=_DOTS_PER_INCH, metadata=metadata)
        written.append(path)
    return written
