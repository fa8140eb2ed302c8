"""Which differences between systems are more than chance: bootstrap, MAPSSWE, many at once."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from espnet_moe.analysis.decodings import DecodedSets, Decoding, sets_with_alternatives
from espnet_moe.analysis.record import About, Analysis
from espnet_moe.errors import UserError
from espnet_moe.scoring.error_rates import Alignment, bootstrap_rates, interval, join_counts
from espnet_moe.scoring.folders import ALL

GOOD_WORDS = 2  # in a row, right in both systems: what bounds a segment
LEVEL = 0.05
RESAMPLES = 10_000  # p-values that are multiplied by the number of tests need many draws
FEW_SEGMENTS = 50  # below this many the normal approximation is doubtful

SOURCES = (
    "Gillick and Cox, Some statistical issues in the comparison of speech recognition algorithms, "
    "ICASSP 1989 (the matched-pairs test on segments)",
    "NIST sc_stats, Matched-Pair Sentence-Segment Word Error test (segments bounded by two words "
    "right in both systems)",
    "Bisani and Ney, Bootstrap estimates for confidence intervals in ASR performance evaluation, "
    "ICASSP 2004",
    "Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of "
    "Statistics 6, 1979",
)


def error_segments(first: Alignment, second: Alignment) -> list[tuple[int, int]]:
    """Stretches of an utterance in which a system errs, bounded by words right in both.

    A segment begins with an error of either system and ends before :data:`GOOD_WORDS` words in a
    row that both have right, or with the utterance. An insertion stands between two words.

    Args:
        first: Of the reference with the first system's hypothesis.
        second: Of the same reference with the second's.

    Returns:
        The errors of the first and of the second system in each segment.

    Raises:
        UserError: For alignments of different references.
    """
    words, errors_a, inserted_a = _by_word(first)
    others, errors_b, inserted_b = _by_word(second)
    if words != others:
        raise UserError("systems can be compared on the same references only")
    places: list[tuple[int, int]] = []
    for i in range(len(words) + 1):
        if inserted_a[i] or inserted_b[i]:
            places.append((inserted_a[i], inserted_b[i]))
        if i < len(words):
            places.append((errors_a[i], errors_b[i]))
    segments: list[tuple[int, int]] = []
    good = GOOD_WORDS
    for a, b in places:
        if not a and not b:
            good += 1
            continue
        if good >= GOOD_WORDS:
            segments.append((0, 0))
        segments[-1] = (segments[-1][0] + a, segments[-1][1] + b)
        good = 0
    return segments


def _by_word(alignment: Alignment) -> tuple[list[str], list[int], list[int]]:
    """Words of the reference, whether each is wrong, and insertions before each and at the end."""
    words: list[str] = []
    wrong: list[int] = []
    inserted = [0]
    for reference, hypothesis in zip(alignment.reference, alignment.hypothesis, strict=True):
        if reference is None:
            inserted[-1] += 1
            continue
        words.append(reference)
        wrong.append(int(reference != hypothesis))
        inserted.append(0)
    return words, wrong, inserted


def mapsswe(segments: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Matched-pairs test of the difference of errors a segment.

    ``W = mean(Z) / (std(Z) / √n)`` with ``Z`` the first system's errors less the second's;
    two-sided by the normal distribution, as n is large.

    Args:
        segments: Errors of both systems in each; see :func:`error_segments`.

    Returns:
        ``segments``, ``mean``, ``statistic`` and ``p``. Where all differences are the same there is
        no statistic; p is then 1 for a difference of 0 and not known otherwise.
    """
    z = np.array([a - b for a, b in segments], dtype=float)
    mean = float(z.mean()) if len(z) else 0.0
    spread = float(z.std(ddof=1)) if len(z) > 1 else 0.0
    statistic = p = None
    if spread > 0:
        statistic = mean / (spread / math.sqrt(len(z)))
        p = math.erfc(abs(statistic) / math.sqrt(2))
    elif mean == 0:
        p = 1.0
    return {"segments": len(z), "mean": mean, "statistic": statistic, "p": p}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values for many tests by Holm's step-down; unknown ones stay unknown.

    An adjusted value below a level is significant at it, with that chance of any false one among
    all.
    """
    known = [(p, i) for i, p in enumerate(p_values) if p is not None]
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(sorted(known)):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = largest
    return adjusted


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p of draws of a difference ``(draws,)``: twice the smaller share beyond 0."""
    draws = len(differences)
    # Added up in another order, equal rates differ in their last bits.
    below, above = (differences <= 1e-9).sum(), (differences >= -1e-9).sum()
    return float(min(1.0, 2 * (1 + min(below, above)) / (1 + draws)))


ABOUT = About(
    name="significance",
    title="Significance of differences between systems",
    what="Which systems differ in word error rate by more than chance?",
    method=(
        "Every pair of systems on the same utterances. Bootstrap: utterances are drawn with "
        "replacement, the same for both systems; the interval is of the difference (first less "
        "second). MAPSSWE: segments of an utterance bounded by two words in a row that both "
        "systems have right, or by its ends; the mean difference of errors a segment against "
        f"its standard error (below {FEW_SEGMENTS} segments the normal approximation is "
        "doubtful). The set 'all' pools the utterances of all sets. Each test's p-values are "
        "adjusted by Holm over all rows; significant means an adjusted p below 0.05."
    ),
    sources=SOURCES,
    units={
        "wer": "percent",
        "difference": "points of WER, first less second",
        "interval": "95 % of the difference, unadjusted",
        "mapsswe_mean": "errors a segment, first less second",
        "mapsswe_statistic": "standard errors",
    },
)


def significance(which: DecodedSets, resamples: int = RESAMPLES, seed: int = 0) -> Analysis:
    """Compare every pair of systems, set by set and over all sets together."""
    if resamples < 1000:
        raise UserError(f"--resamples is {resamples}; a test needs at least 1000")
    decodings, missing = which.read()
    systems = tuple(dict.fromkeys(d.system for d in decodings))
    if len(systems) < 2:
        raise UserError(f"one system ({systems[0]}) makes no comparison: decode another")
    table = {(d.system, d.set): d for d in decodings}
    sets = list(dict.fromkeys(d.set for d in decodings))
    if lacking := sets_with_alternatives(decodings):
        missing["alternatives"] = (
            f"{', '.join(lacking)}: utterances have several right texts; all systems are compared "
            "on the first, so that these WERs differ from those of results.json"
        )
    rows = []
    for name in [*sets, *([ALL] if len(sets) > 1 else [])]:
        columns = sets if name == ALL else [name]
        whole = [s for s in systems if all((s, column) in table for column in columns)]
        if len(whole) < 2:
            missing[f"comparisons on {name}"] = "fewer than two systems have decoded all of it"
            continue
        own = {s: [table[s, column] for column in columns] for s in whole}
        rows += _compare(name, own, resamples, seed)
    for kind in ("bootstrap", "mapsswe"):
        adjusted = holm([row[f"{kind}_p"] for row in rows])
        for row, p in zip(rows, adjusted, strict=True):
            row[f"{kind}_p_holm"] = p
            row[f"{kind}_significant"] = p is not None and p < LEVEL
    if 2 * len(rows) / (1 + resamples) >= LEVEL:
        missing["bootstrap_significant"] = (
            f"{resamples} draws tell no adjusted p below {LEVEL} for {len(rows)} comparisons: ask "
            f"for --resamples {int(2 * len(rows) / LEVEL) + 1} or more, or for fewer systems"
        )
    return Analysis(
        ABOUT,
        results={
            "systems": systems,
            "sets": sets,
            "comparisons": len(rows),
            "few_segments": FEW_SEGMENTS,
            "rows": rows,
        },
        options={"resamples": resamples, "seed": seed, "inference_tag": which.inference_tag},
        not_available=missing,
    )


def _compare(
    name: str, own: dict[str, list[Decoding]], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """All pairs of systems on some sets taken together."""
    counts = {s: join_counts([d.counts for d in decodings]) for s, decodings in own.items()}
    draws = {
        s: bootstrap_rates(c.errors, c.lengths, resamples, (seed, len(c.errors)))
        for s, c in counts.items()
    }
    rows = []
    for first, second in combinations(own, 2):
        segments = [
            segment
            for a, b in zip(own[first], own[second], strict=True)
            for pair in zip(a.alignments, b.alignments, strict=True)
            for segment in error_segments(*pair)
        ]
        found = mapsswe(segments)
        apart = draws[first] - draws[second]
        rows.append(
            {
                "set": name,
                "first": first,
                "second": second,
                "utterances": len(counts[first].errors),
                "words": int(counts[first].lengths.sum()),
                "wer_first": counts[first].rate,
                "wer_second": counts[second].rate,
                "difference": counts[first].rate - counts[second].rate,
                "interval": interval(apart),
                "bootstrap_p": bootstrap_p(apart),
                "segments": found["segments"],
                "mapsswe_mean": found["mean"],
                "mapsswe_statistic": found["statistic"],
                "mapsswe_p": found["p"],
            }
        )
    return rows
