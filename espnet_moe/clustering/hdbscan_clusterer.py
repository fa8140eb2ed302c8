"""HDBSCAN: clusters where rows are dense, noise where they are not."""

import logging
from dataclasses import dataclass
from typing import Self

import numpy as np

from espnet_moe.clustering import rows
from espnet_moe.clustering.rows import ClusteringError

SELECTIONS = ("eom", "leaf")


@dataclass(frozen=True)
class HDBSCANOptions:
    """HDBSCAN (Campello et al. 2013; package hdbscan): finds the number of clusters, and noise.

    Attributes:
        min_cluster_size: Rows that make a cluster.
        min_samples: Neighbours that make a row dense: more means more noise; 0 takes
            ``min_cluster_size``.
        selection: ``eom`` (the most persistent clusters) or ``leaf`` (the smallest).
        epsilon: Clusters nearer than this distance are one.
        seed: Of the choice of rows where there are more than ``max_rows``.
        max_rows: With more, a random choice of so many is clustered; the others are placed in the
            tree that results.
        soft: Membership vectors, scaled to sum to 1; otherwise 1 for the cluster found. Noise is a
            row of zeros either way.
    """

    min_cluster_size: int = 50
    min_samples: int = 0
    selection: str = "eom"
    epsilon: float = 0.0
    seed: int = 0
    max_rows: int = 50000
    soft: bool = True

    def __post_init__(self) -> None:
        problems = rows.at_least(
            self, min_cluster_size=2, min_samples=0, max_rows=self.min_cluster_size, seed=0
        )
        if self.epsilon < 0:
            problems.append(f"epsilon is not negative, but {self.epsilon} is")
        rows.require("hdbscan", problems + rows.one_of(self, selection=SELECTIONS))

    def build(self) -> "HDBSCAN":
        """Make the clusterer."""
        return HDBSCAN(self)


class HDBSCAN:
    """See :class:`HDBSCANOptions`."""

    def __init__(self, options: HDBSCANOptions) -> None:
        self.options, self.count = options, 0

    def fit(self, x: np.ndarray) -> Self:
        """Find clusters; see :class:`Clusterer`."""
        import hdbscan

        o, x = self.options, rows.checked(x, self.options.min_cluster_size)
        self._fitted = rows.subsample(x, o.max_rows, o.seed)
        self._tree = hdbscan.HDBSCAN(
            min_cluster_size=o.min_cluster_size,
            min_samples=o.min_samples or None,
            cluster_selection_method=o.selection,
            cluster_selection_epsilon=float(o.epsilon),
            prediction_data=True,
            core_dist_n_jobs=1,
        ).fit(self._fitted)
        self._labels = self._tree.labels_
        self.count = int(self._labels.max()) + 1
        if self.count < 2:
            what = "one cluster only" if self.count else "nothing but noise"
            raise ClusteringError(
                f"HDBSCAN finds {what} in {len(self._fitted)} rows of {x.shape[1]} dimensions: "
                f"lower min_cluster_size ({o.min_cluster_size}) or min_samples "
                f"({o.min_samples or o.min_cluster_size}), or reduce to fewer dimensions"
            )
        means = [self._fitted[self._labels == c].mean(axis=0) for c in range(self.count)]
        self.centroids = np.stack(means)
        noise = float((self._labels < 0).mean())
        logging.info("HDBSCAN: %d clusters, %.1f %% noise", self.count, 100 * noise)
        return self

    def memberships(self, x: np.ndarray) -> np.ndarray:
        """Memberships ``(m, C)``; see :class:`Clusterer`."""
        import hdbscan

        x = rows.checked(x)
        seen, which = rows.find(x, self._fitted)
        labels = self._labels[which]
        vectors = np.zeros((len(x), self.count))
        if self.options.soft and seen.any():
            vectors[seen] = hdbscan.all_points_membership_vectors(self._tree)[which[seen]]
        if not seen.all():
            labels[~seen], _ = hdbscan.approximate_predict(self._tree, x[~seen])
            if self.options.soft:
                vectors[~seen] = hdbscan.membership_vector(self._tree, x[~seen])
        sums = vectors.sum(axis=1, keepdims=True)
        usable = (np.isfinite(sums) & (sums > 0))[:, 0]
        found = rows.one_hot(labels, self.count)
        found[usable] = vectors[usable] / sums[usable]
        # Where clusters touch, the soft memberships may favour another than the row was found in.
        torn = seen & (labels >= 0) & (found.argmax(axis=1) != labels)
        found[torn] = rows.one_hot(labels[torn], self.count)
        found[labels < 0] = 0
        return found
