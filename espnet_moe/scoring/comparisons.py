"""Systems against each other, utterance by utterance: differences with paired intervals.

Everything is read from the score folders, so that rows of earlier runs are compared anew.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from espnet_moe.errors import UserError
from espnet_moe.scoring.archive import Archive
from espnet_moe.scoring.error_rates import EditCounts, bootstrap_rates, interval
from espnet_moe.scoring.rows import TEXT_ONLY, Row
from espnet_moe.scoring.systems import BASELINE, ORACLE, is_plain, plain_columns, sibling

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bootstrap:
    """How often to draw, and from which seed."""

    resamples: int
    seed: int


def compare_rows(rows: Sequence[Row], archive: Archive, baseline: str, draws: Bootstrap) -> None:
    """Fill in each row's ``comparison`` with the baseline's row of the same set and language."""
    baselines = {_place(row): row for row in rows if row["system"] == baseline}
    for row in rows:
        row["comparison"] = None
        other = baselines.get(_place(row))
        if other is None or other is row:
            continue
        pair = _pair(row, other, archive)
        if pair is not None:
            row["comparison"] = {"baseline": baseline, **_difference([pair], draws)}


def average_rows(
    rows: Sequence[Row], archive: Archive, baseline: str, draws: Bootstrap
) -> list[Row]:
    """Average each system's WER over its sets of one language, each counted the same.

    Args:
        rows: The rows of ``results.json``.
        archive: Their score folders.
        baseline: Name of the baseline.
        draws: Of the bootstrap; utterances are drawn within each set.

    Returns:
        For each system and inference tag ``wer`` (``None`` where it lacks a set that another system
        has), and its comparisons ``against`` the baseline and the oracle of the same experts.
    """
    columns = plain_columns(list(rows))
    table = {(row["system"], *_place(row)): row for row in rows if is_plain(row)}
    averages = []
    for system, tag in dict.fromkeys((row["system"], row["inference_tag"]) for row in rows):
        own = [table.get((system, tag, *column)) for column in columns]
        present = [row for row in own if row is not None and row["wer"] is not None]
        if not present:
            continue
        whole = len(present) == len(columns)
        average = sum(row["wer"] for row in present) / len(present) if whole else None
        against = {}
        for kind in (BASELINE, ORACLE) if whole else ():
            name = sibling(present[0], kind, baseline)
            others = [table.get((name, tag, *column)) for column in columns]
            if name != system and None not in others:
                pairs = [_pair(a, b, archive) for a, b in zip(present, others, strict=True) if b]
                known = [pair for pair in pairs if pair is not None]
                if len(known) == len(columns):
                    against[kind] = {"system": name, **_difference(known, draws)}
        averages.append(
            {
                "system": system,
                "inference_tag": tag,
                "sets": len(present),
                "wer": None if average is None else round(average, 2),
                "against": against,
            }
        )
    return averages


def paired_difference(first: EditCounts, second: EditCounts, draws: Bootstrap) -> Row:
    """Compare two systems' edits of the same utterances: the first less the second."""
    return _difference([(first, second)], draws)


def _pair(row: Row, other: Row, archive: Archive) -> tuple[EditCounts, EditCounts] | None:
    """Read the edits of two rows; ``None``, with a warning, where they cannot be compared."""
    try:
        ids, counts = archive.counts(row)
        other_ids, other_counts = archive.counts(other)
    except UserError as error:
        log.warning("no comparison with %s: %s", other["system"], error)
        return None
    kind = row.get("references", TEXT_ONLY)
    same = ids == other_ids and row["normalizer"] == other["normalizer"]
    same = same and kind == other.get("references", TEXT_ONLY)
    # With alternatives each system has its own best match, and its length.
    if not same or (kind == TEXT_ONLY and not np.array_equal(counts.lengths, other_counts.lengths)):
        log.warning(
            "no comparison of %s with %s: they were scored against different references; "
            "score both again",
            f"{archive.exp}/{row['system']}/{row['inference_tag']}/{row['set']}",
            other["system"],
        )
        return None
    return counts, other_counts


def _difference(pairs: Sequence[tuple[EditCounts, EditCounts]], draws: Bootstrap) -> Row:
    """Compare averages over sets: utterances are drawn within each set, the same for both."""
    rate = float(np.mean([first.rate for first, _ in pairs]))
    other = float(np.mean([second.rate for _, second in pairs]))
    drawn: list[npt.NDArray] = []
    for number, pair in enumerate(pairs):
        seed = draws.seed if len(pairs) == 1 else (draws.seed, number)
        rates = [bootstrap_rates(c.errors, c.lengths, draws.resamples, seed) for c in pair]
        drawn.append(rates[0] - rates[1])
    low, high = interval(np.mean(drawn, axis=0))
    # What adding up in another order leaves is no difference.
    low, high = (0.0 if abs(value) < 1e-9 else value for value in (low, high))
    return {
        "wer_diff": round(rate - other, 2),
        "wer_diff_ci": [round(low, 2), round(high, 2)],
        "wer_relative": round(100 * (rate - other) / other, 2) if other > 0 else None,
        # Draws of a single utterance are all the same: their interval says nothing.
        "significant": min(len(first.errors) for first, _ in pairs) > 1 and (low > 0 or high < 0),
    }


def _place(row: Row) -> tuple[str, str, str]:
    return row["inference_tag"], row["set"], row["language"]
