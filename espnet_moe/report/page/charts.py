"""Drawings of the page, worked out to the point; the templates only write them down.

Lengths are units of the drawing's own ``viewBox``, which the page scales to the place there is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from espnet_moe.report.page.tables import Cell, number, share
from espnet_moe.report.summary import Row, labels
from espnet_moe.scoring.error_rates import wilson

_LABELS, _PLOT, _ROW, _AXIS = 92.0, 200.0, 19.0, 24.0
_SIDE = 210.0  # of a square diagram


@dataclass(frozen=True)
class Dot:
    """A system's rate: where its line is, its dot, and the ends of its interval."""

    label: str
    cell: Cell
    y: float
    x: float
    low: float
    high: float
    base: bool  # whether it is what the others are compared with


@dataclass(frozen=True)
class DotPanel:
    """Rates of systems on one set, a line each."""

    title: str
    dots: tuple[Dot, ...]
    ticks: tuple[tuple[float, str], ...]
    base: float | None  # where the baseline stands
    left: float = _LABELS
    width: float = _LABELS + _PLOT + 12
    bottom: float = 0.0
    height: float = 0.0


@dataclass(frozen=True)
class DotPlot:
    """A panel a set."""

    caption: str
    panels: tuple[DotPanel, ...]
    kind: str = "dots"


def dot_plot(rows: Sequence[Row], baseline: str, caption: str) -> DotPlot:
    """Draw WERs with their intervals, each set on its own scale.

    Args:
        rows: Of ``results.json``, with a WER.
        baseline: The system that is marked.
        caption: Below it.
    """
    columns = list(dict.fromkeys((row["set"], row["language"]) for row in rows))
    names = labels(rows)
    panels = []
    for column in columns:
        own = [
            (name, row)
            for name, row in zip(names, rows, strict=True)
            if (row["set"], row["language"]) == column
        ]
        panels.append(_panel(f"{column[0]} ({column[1]})", own, baseline))
    return DotPlot(caption, tuple(panels))


def _panel(title: str, own: Sequence[tuple[str, Row]], baseline: str) -> DotPanel:
    step, limit = _scale(max(row["wer_ci"][1] for _, row in own))

    def at(value: float) -> float:
        return round(_LABELS + _PLOT * min(value, limit) / limit, 1)

    dots = tuple(
        Dot(
            label=name,
            cell=number(row["wer"], 2, row["wer_ci"]),
            y=_ROW * (i + 0.5),
            x=at(row["wer"]),
            low=at(row["wer_ci"][0]),
            high=at(row["wer_ci"][1]),
            base=row["system"] == baseline,
        )
        for i, (name, row) in enumerate(own)
    )
    count = round(limit / step)
    bottom = _ROW * len(own)
    return DotPanel(
        title=title,
        dots=dots,
        ticks=tuple((at(step * n), f"{step * n:g}") for n in range(count + 1)),
        base=next((dot.x for dot in dots if dot.base), None),
        bottom=bottom,
        height=bottom + _AXIS,
    )


def _scale(largest: float) -> tuple[float, float]:
    """A round step and a limit that is a multiple of it, not below the largest value."""
    rough = max(largest, 1e-6) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    return step, step * math.ceil(largest / step) if largest > 0 else step


@dataclass(frozen=True)
class Confusion:
    """How often each language was taken for which; colours by the share of the row."""

    title: str
    decided: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[int, float], ...], Cell], ...]


@dataclass(frozen=True)
class Confusions:
    """A matrix a system."""

    caption: str
    matrices: tuple[Confusion, ...]
    kind: str = "confusions"


def confusion(title: str, counts: Row) -> Confusion:
    """Lay out ``{"languages", "decided", "counts"}``, with the share that is right of each row."""
    rows = []
    for language, line in zip(counts["languages"], counts["counts"], strict=True):
        total = sum(line)
        right = line[counts["decided"].index(language)] if language in counts["decided"] else 0
        cells = tuple((count, round(count / total, 3) if total else 0.0) for count in line)
        rows.append((language, cells, share(right, total)))
    return Confusion(title, tuple(name or "none" for name in counts["decided"]), tuple(rows))


@dataclass(frozen=True)
class Bin:
    """Utterances of about one confidence."""

    x: float
    y: float
    low: float
    high: float
    radius: float
    told: str


@dataclass(frozen=True)
class Diagram:
    """Whether a router is right as often as it is sure to be."""

    title: str
    bins: tuple[Bin, ...]
    side: float = _SIDE
    left: float = 34.0
    ticks: tuple[float, ...] = field(default=(0.0, 0.5, 1.0))


@dataclass(frozen=True)
class Reliability:
    """A diagram a system."""

    caption: str
    diagrams: tuple[Diagram, ...]
    kind: str = "reliability"


def diagram(title: str, bins: Row) -> Diagram:
    """Draw ``{"count", "confidence", "accuracy"}``; the area of a dot goes with its utterances."""
    found = []
    most = max(bins["count"], default=0)
    for count, confidence, accuracy in zip(
        bins["count"], bins["confidence"], bins["accuracy"], strict=True
    ):
        if not count:
            continue
        low, high = wilson(round(accuracy * count), count)
        told = (
            f"{count} utterances, mean probability {confidence:.2f}, right {100 * accuracy:.1f} % "
            f"[{100 * low:.1f}, {100 * high:.1f}]"
        )
        found.append(
            Bin(
                x=round(_SIDE * confidence, 1),
                y=round(_SIDE * (1 - accuracy), 1),
                low=round(_SIDE * (1 - low), 1),
                high=round(_SIDE * (1 - high), 1),
                radius=round(2 + 5 * math.sqrt(count / most), 1),
                told=told,
            )
        )
    return Diagram(title, tuple(found))
