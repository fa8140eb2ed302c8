"""What clusters hold: sizes, languages, speakers, and how they agree with the languages."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from espnet_moe.clustering.rows import ClusteringError

Labels = Sequence[Any] | np.ndarray
MAX_SPEAKERS = 50  # with more, the report counts them instead of listing each


def mutual_information(labels: Labels, others: Labels) -> float:
    """Normalised mutual information of two labellings, in 0..1.

    ``I(A; B) / ((H(A) + H(B)) / 2)``; 1 where each is the other renamed, and where both know one
    label only.
    """
    table = _contingency(labels, others)
    if not table.sum():
        return 0.0
    joint = table / table.sum()
    a, b = joint.sum(axis=1), joint.sum(axis=0)
    there = joint > 0
    shared = float((joint[there] * np.log(joint[there] / np.outer(a, b)[there])).sum())
    mean = (_entropy(a) + _entropy(b)) / 2
    return min(max(shared / mean, 0.0), 1.0) if mean > 0 else 1.0


def purity(labels: Labels, truth: Labels) -> float:
    """Share of rows whose cluster's commonest true label is their own, in 0..1."""
    table = _contingency(labels, truth)
    return float(table.max(axis=1).sum() / table.sum()) if table.sum() else 0.0


def cluster_report(
    labels: Labels,
    languages: Sequence[str],
    speakers: Sequence[str],
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Describe clusters; the result can be written as JSON.

    Args:
        labels: ``(n,)`` cluster of each utterance; -1 is noise.
        languages: Of each.
        speakers: Of each.
        names: Of the clusters; ``c0``, ``c1`` … without.

    Returns:
        ``utterances``, ``clusters``, ``sizes`` {cluster: count}, ``noise`` (count),
        ``languages`` {cluster: {language: count}}, ``speakers`` {cluster: {"count", "largest",
        "largest_share"}, and "utterances" {speaker: count} where there are at most
        ``MAX_SPEAKERS`` in all}, ``nmi`` and ``purity`` against languages, of the utterances that
        are not noise. Noise has the row ``noise`` in ``languages`` and ``speakers``.

    Raises:
        ClusteringError: For columns of different lengths, or labels without a name.
    """
    found = np.asarray(labels, dtype=int)
    if not len(found) == len(languages) == len(speakers):
        raise ClusteringError(
            f"{len(found)} labels, {len(languages)} languages and {len(speakers)} speakers: "
            "give one of each for every utterance"
        )
    count = int(found.max(initial=-1)) + 1
    names = [f"c{i}" for i in range(count)] if names is None else list(names)
    if len(names) < count:
        raise ClusteringError(f"{count} clusters, but {len(names)} names: {' '.join(names)}")
    rows = {name: np.flatnonzero(found == i) for i, name in enumerate(names)}
    noise = np.flatnonzero(found < 0)
    kept = np.flatnonzero(found >= 0)
    tongues = np.asarray(languages)[kept]
    shown = rows | ({"noise": noise} if len(noise) else {})
    few = len(set(speakers)) <= MAX_SPEAKERS
    return {
        "utterances": len(found),
        "clusters": len(names),
        "sizes": {name: len(index) for name, index in rows.items()},
        "noise": len(noise),
        "languages": {name: _counts(languages, index) for name, index in shown.items()},
        "speakers": {name: _speakers(speakers, index, few) for name, index in shown.items()},
        "nmi": mutual_information(found[kept], tongues),
        "purity": purity(found[kept], tongues),
    }


def format_report(report: dict[str, Any]) -> str:
    """The report as a table for the log: one cluster a line, languages as columns."""
    tongues = sorted({code for counts in report["languages"].values() for code in counts})
    head = ["cluster", "utts", *tongues, "speakers", "largest"]
    body = []
    for name, counts in report["languages"].items():
        speakers = report["speakers"][name]
        share = f"{100 * speakers['largest_share']:.0f} %" if speakers["count"] else "-"
        cells = [str(counts.get(code, 0)) for code in tongues]
        body.append([name, str(sum(counts.values())), *cells, str(speakers["count"]), share])
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in (head, *body)
    ]
    lines.append(
        f"NMI {report['nmi']:.3f}, purity {report['purity']:.3f} against languages, of "
        f"{report['utterances'] - report['noise']} of {report['utterances']} utterances "
        f"({report['noise']} are noise)"
    )
    return "\n".join(lines)


def _contingency(labels: Labels, others: Labels) -> np.ndarray:
    if len(labels) != len(others):
        raise ClusteringError(f"{len(labels)} labels against {len(others)}: give as many")
    a, row = np.unique(np.asarray(labels), return_inverse=True)
    b, column = np.unique(np.asarray(others), return_inverse=True)
    table = np.zeros((len(a), len(b)))
    np.add.at(table, (row, column), 1)
    return table


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def _counts(values: Sequence[str], index: np.ndarray) -> dict[str, int]:
    return dict(sorted(Counter(values[int(i)] for i in index).items()))


def _speakers(speakers: Sequence[str], index: np.ndarray, few: bool) -> dict[str, Any]:
    counts = _counts(speakers, index)
    largest = max(counts, key=lambda s: counts[s], default="")
    told: dict[str, Any] = {
        "count": len(counts),
        "largest": largest,
        "largest_share": counts[largest] / len(index) if counts else 0.0,
    }
    return told | ({"utterances": counts} if few else {})
