"""Which experts an utterance belongs to: lines ``utt_id expert:weight …`` (utt2experts)."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from espnet_moe.data.files import DataDirError, listed, read_lines


def read_utt2experts(
    path: str | Path, experts: Sequence[str], utt_ids: Collection[str] | None = None
) -> dict[str, dict[str, float]]:
    """Read the experts of every utterance.

    Args:
        path: The file.
        experts: Names that are legal.
        utt_ids: Ids that are legal; ``None`` takes all.

    Returns:
        By utterance id: weight by expert, all above 0, as written.

    Raises:
        DataDirError: When the file is missing or empty; for unknown ids and experts, ids or experts
            that repeat, and weights that are not numbers above 0. All are listed, with their lines.
    """
    path = Path(path)
    table: dict[str, dict[str, float]] = {}
    problems: list[str] = []
    for number, line in read_lines(path):
        key, *values = line.split()
        where = f"line {number}: {key}"
        if utt_ids is not None and key not in utt_ids:
            problems.append(f"{where} is no utterance of the data")
        elif key in table:
            problems.append(f"{where} is there more than once")
        try:
            table[key] = parse_memberships(" ".join(values), experts)
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if not table and not problems:
        problems.append("it is empty")
    if problems:
        raise DataDirError(
            f"{path} cannot be used; legal experts: {' '.join(experts)}; assign experts again, or "
            f"name the experts that it was made with:\n  {listed(problems)}"
        )
    return table


def parse_memberships(value: str, experts: Sequence[str]) -> dict[str, float]:
    """Read what follows the utterance id in a line of utt2experts.

    Args:
        value: ``expert:weight expert:weight …``.
        experts: Names that are legal.

    Raises:
        ValueError: For no expert at all, unknown ones, ones that repeat, and weights that are not
            numbers above 0; all are named.
    """
    weights: dict[str, float] = {}
    problems = []
    for part in value.split():
        name, colon, written = part.rpartition(":")
        if not colon or not name:
            problems.append(f"'{part}' is not expert:weight")
            continue
        if name not in experts:
            problems.append(f"unknown expert '{name}'")
        if name in weights:
            problems.append(f"expert '{name}' is there more than once")
        try:
            weights[name] = float(written)
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] < math.inf:
            problems.append(f"weight '{written}' of {name} is not a number above 0")
    if not value.split():
        problems.append("no expert is named")
    if problems:
        raise ValueError("; ".join(problems))
    return weights


def format_memberships(weights: Mapping[str, float]) -> str:
    """Write weights by expert as ``expert:weight …``, the strongest first; zeros are left out."""
    ordered = sorted(weights.items(), key=lambda item: -item[1])
    return " ".join(f"{name}:{weight:.6g}" for name, weight in ordered if weight > 0)
