"""Choose the number of clusters by how well they part the rows."""

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from espnet_moe.clustering import rows
from espnet_moe.clustering.clusterers import Clusterer, labels_of
from espnet_moe.clustering.rows import ClusteringError

METRICS = ("euclidean", "cosine")


@dataclass(frozen=True)
class SelectionOptions:
    """How the number of clusters is chosen.

    Attributes:
        candidates: Numbers to try.
        metric: Distance of the silhouette: ``euclidean`` or ``cosine``.
        max_rows: With more, the silhouette is that of a random choice of so many (its time grows
            with their square); clusters are found from all.
        seed: Of that choice.
    """

    candidates: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    metric: str = "euclidean"
    max_rows: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        problems = rows.at_least(self, max_rows=10, seed=0)
        problems += rows.one_of(self, metric=METRICS)
        if not self.candidates:
            problems.append("candidates is empty")
        problems += [f"candidate {c!r} is no number of clusters (2, 3, …)" for c in self._wrong()]
        rows.require("selection", problems)

    def _wrong(self) -> list[Any]:
        return [c for c in self.candidates if not isinstance(c, int) or c < 2]


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Attributes:
        count: The number of clusters with the highest score; the smaller where two are equal.
        scores: Mean silhouette in -1..1 by candidate; those that found one cluster only have none.
        clusterer: Fitted with that number.
    """

    count: int
    scores: dict[int, float]
    clusterer: Clusterer


def select_count(x: np.ndarray, options: Any, selection: SelectionOptions) -> Selection:
    """Fit every candidate number of clusters and keep the one with the best silhouette.

    The silhouette (Rousseeuw 1987) compares each row's mean distance to its own cluster with that
    to the nearest other one.

    Args:
        x: Rows ``(n, dim)``.
        options: Of a clusterer that is told its ``count``, e.g. ``KMeansOptions``.
        selection: Candidates and metric.

    Raises:
        ClusteringError: For a clusterer that finds the number itself, fewer rows than clusters, or
            no candidate that parts the rows.
    """
    from sklearn.metrics import silhouette_score

    if not hasattr(options, "count"):
        raise ClusteringError(
            f"{type(options).__name__} has no count to choose: hdbscan finds the number of "
            "clusters itself; leave the selection out"
        )
    candidates = sorted(set(selection.candidates))
    x = rows.checked(x, at_least=candidates[-1] + 1)
    rng = np.random.default_rng(selection.seed)
    sample = np.sort(rng.permutation(len(x))[: selection.max_rows])
    scores: dict[int, float] = {}
    best: Clusterer | None = None
    for count in candidates:
        clusterer = dataclasses.replace(options, count=count).build().fit(x)
        labels = labels_of(clusterer.memberships(x[sample]))
        if not 1 < len(np.unique(labels)) < len(sample):
            logging.warning("%d clusters: all rows fall into one; not a candidate", count)
            continue
        score = float(silhouette_score(x[sample], labels, metric=selection.metric))
        logging.info("%d clusters: silhouette %.4f (%s)", count, score, selection.metric)
        if best is None or score > max(scores.values()):
            best = clusterer
        scores[count] = score
    if best is None:
        raise ClusteringError(
            f"none of {', '.join(map(str, candidates))} clusters parts the {len(x)} rows: "
            "are the embeddings all alike?"
        )
    chosen = max(scores, key=lambda c: (scores[c], -c))
    logging.info("chosen: %d clusters (silhouette %.4f)", chosen, scores[chosen])
    return Selection(chosen, scores, best)
