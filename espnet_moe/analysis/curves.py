"""Learning curves: how the WER falls with data, after transfer and from scratch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from espnet_moe.errors import UserError
from espnet_moe.report.grid import CURVES

SCRATCH = "scratch"


class Point(NamedTuple):
    """A training: hours of data, WER in percent, and the WER's interval where it is known."""

    hours: float
    wer: float
    interval: tuple[float, float] | None = None


Curves = Mapping[str, Mapping[str, Sequence[Point]]]  # by language and start


def data_needed(curve: Sequence[tuple[float, float]], target: float) -> float | None:
    """Hours of data at which a learning curve first reaches a WER.

    Linear in the logarithm of the hours between the measured points, never beyond them.

    Args:
        curve: Hours and WER of each training, in any order.
        target: WER.

    Returns:
        Hours; those of the smallest training where that is good enough, though fewer might have
        been, too; ``None`` where none is.

    Raises:
        UserError: For no points, hours that are not above 0, or two trainings of the same hours.
    """
    points = sorted(curve)
    hours = [h for h, _ in points]
    if not points or hours[0] <= 0 or len(set(hours)) < len(hours):
        raise UserError(f"a learning curve has different hours above 0, these are {hours}")
    for i, (h, wer) in enumerate(points):
        if wer <= target:
            if i == 0:
                return h
            earlier, before = points[i - 1]
            share = (before - target) / (before - wer)
            return math.exp(math.log(earlier) + share * (math.log(h) - math.log(earlier)))
    return None


def data_saved(
    scratch: Sequence[tuple[float, float]], transferred: Sequence[tuple[float, float]]
) -> list[dict[str, float | None]]:
    """How much better a transferred expert is, and how much less data it needs to be as good.

    Returns:
        By training from scratch its ``hours`` and ``wer``; the ``gain`` of transfer with as many
        hours, percent of that WER (``None`` where no training had them); the hours ``needed``
        after transfer to match it, and the ``factor`` between them (above 1: data are saved),
        ``None`` where it is never reached. Where the smallest training after transfer is good
        enough already, bounds are all that is known: ``needed_at_most``, ``factor_at_least``.
        No factor, either, where less data from scratch had done as well: what is superfluous
        anyway, transfer does not save.
    """
    least = min((h for h, _ in transferred), default=math.nan)
    found: list[dict[str, float | None]] = []
    best = math.inf  # WER from scratch with less data
    for hours, wer in sorted(scratch):
        same = [other for h, other in transferred if math.isclose(h, hours, rel_tol=0.01)]
        gain = 100 * (wer - same[0]) / wer if same and wer > 0 else None
        needed = data_needed(transferred, wer)
        known = {
            "needed": needed,
            "factor": None if needed is None or best <= wer else hours / needed,
            "needed_at_most": None,
            "factor_at_least": None,
        }
        if needed == least:
            bounds = {"needed_at_most": needed, "factor_at_least": known["factor"]}
            known = {"needed": None, "factor": None, **bounds}
        found.append({"hours": hours, "wer": wer, "gain": gain, **known})
        best = min(best, wer)
    return found


def read_curves(path: Path) -> dict[str, dict[str, list[Point]]]:
    """Read learning curves: lines ``language start hours wer``, tab-separated, with a header.

    ``start`` is ``scratch``, or the expert that the training began from. Two further columns,
    ``low`` and ``high``, are the WER's interval.

    Returns:
        Points by language and start.

    Raises:
        UserError: For a file that cannot be read or is of another layout.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    columns = tuple(lines[0].split("\t")) if lines else ()
    if columns not in (CURVES, CURVES[:4]):
        raise UserError(
            f"{path}: the first line is language, start, hours, wer (and low, high) between tabs"
        )
    found: dict[str, dict[str, list[Point]]] = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            language, start, *values = line.split("\t")
            if len(values) != len(columns) - 2:
                raise ValueError
            hours, wer, *low_high = map(float, values)
            point = Point(hours, wer, (low_high[0], low_high[1]) if low_high else None)
        except ValueError:
            raise UserError(f"{path}:{number} is not {', '.join(columns)}") from None
        found.setdefault(language, {}).setdefault(start, []).append(point)
    return found


def compare_starts(curves: Mapping[str, Sequence[Point]]) -> dict[str, Any]:
    """Compare a language's trainings after transfer with those from scratch.

    Args:
        curves: By what the trainings began from.

    Returns:
        What :func:`data_saved` says, by the expert that trainings began from.

    Raises:
        UserError: Where none was from scratch, or two trainings of a curve had the same hours.
    """
    if SCRATCH not in curves:
        raise UserError("no curve from scratch to compare with")
    pairs = {start: [(p.hours, p.wer) for p in points] for start, points in curves.items()}
    return {
        start: data_saved(pairs[SCRATCH], own) for start, own in pairs.items() if start != SCRATCH
    }


def told(curves: Curves) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Points as rows, by language and start, in the order of the hours."""
    return {
        language: {start: [_row(p) for p in sorted(points)] for start, points in own.items()}
        for language, own in curves.items()
    }


def _row(point: Point) -> dict[str, Any]:
    interval = {"interval": point.interval} if point.interval else {}
    return {"hours": point.hours, "wer": point.wer, **interval}
