"""Clusterers behind one interface: rows of embeddings in, memberships of clusters out.

``CLUSTERERS["kmeans"]`` is the dataclass of options; its ``build()`` makes the clusterer. Nothing
here knows where the rows come from.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from espnet_moe.clustering import rows
from espnet_moe.clustering.hdbscan_clusterer import HDBSCANOptions
from espnet_moe.clustering.rows import ClusteringError

COVARIANCES = ("full", "tied", "diag", "spherical")
LINKAGES = ("ward", "average", "complete", "single")
AFFINITIES = ("nearest_neighbors", "rbf")
__all__ = ["CLUSTERERS", "Clusterer", "ClustererOptions", "ClusteringError", "labels_of"]


class Clusterer(Protocol):
    """What every clusterer can do.

    Attributes:
        count: Number of clusters ``C``, noise not counted.
        centroids: ``(C, dim)`` mean of each cluster.
    """

    count: int
    centroids: np.ndarray

    def fit(self, x: np.ndarray) -> Self:
        """Find clusters in rows ``(n, dim)``.

        Raises:
            ClusteringError: For too few rows, values that are not finite, or no cluster found.
        """

    def memberships(self, x: np.ndarray) -> np.ndarray:
        """How much rows ``(m, dim)`` belong to each cluster: ``(m, C)``.

        Rows sum to 1; a row of zeros is noise. Rows of the fit keep the cluster found for them.
        """


class ClustererOptions(Protocol):
    """Options of a clusterer."""

    def build(self) -> Clusterer:
        """Make the clusterer."""


def labels_of(memberships: np.ndarray) -> np.ndarray:
    """Strongest cluster of each row ``(m, C)``: ``(m,)`` integers, -1 for noise."""
    return np.where(memberships.any(axis=1), memberships.argmax(axis=1), -1)


@dataclass(frozen=True)
class KMeansOptions:
    """k-means (Lloyd 1982, k-means++ seeding).

    Attributes:
        count: Number of clusters.
        seed: Of the initial centroids.
        restarts: The best of so many runs is kept.
        soft: Memberships are a softmax over ``-d² / (temperature · s²)``, ``d`` the distance to a
            centroid and ``s²`` the mean squared distance of the fitted rows to their own;
            otherwise 1 for the nearest.
        temperature: Of that softmax; smaller is nearer to 0 and 1.
    """

    count: int = 4
    seed: int = 0
    restarts: int = 10
    soft: bool = True
    temperature: float = 0.1

    def __post_init__(self) -> None:
        rows.require(
            "kmeans",
            rows.at_least(self, count=2, restarts=1, seed=0) + rows.positive(self, "temperature"),
        )

    def build(self) -> "KMeans":
        """Make the clusterer."""
        return KMeans(self)


@dataclass(frozen=True)
class GMMOptions:
    """Gaussian mixture, fitted by expectation-maximisation; posteriors are the memberships.

    Attributes:
        count: Number of components.
        seed: Of the initial components.
        restarts: The best of so many runs is kept.
        covariance: ``full``, ``tied``, ``diag`` or ``spherical``.
        regularisation: Added to the diagonal of every covariance.
        soft: Posteriors; otherwise 1 for the most probable component.
    """

    count: int = 4
    seed: int = 0
    restarts: int = 3
    covariance: str = "diag"
    regularisation: float = 1e-4
    soft: bool = True

    def __post_init__(self) -> None:
        rows.require(
            "gmm",
            rows.at_least(self, count=2, restarts=1, seed=0)
            + rows.one_of(self, covariance=COVARIANCES)
            + rows.positive(self, "regularisation"),
        )

    def build(self) -> "GMM":
        """Make the clusterer."""
        return GMM(self)


@dataclass(frozen=True)
class AgglomerativeOptions:
    """Agglomerative clustering; memory grows with the square of the rows.

    Attributes:
        count: Number of clusters.
        seed: Of the choice of rows where there are more than ``max_rows``.
        linkage: ``ward``, ``average``, ``complete`` or ``single``.
        max_rows: With more, a random choice of so many is clustered; all others go to the nearest
            centroid.
        soft, temperature: See :class:`KMeansOptions`.
    """

    count: int = 4
    seed: int = 0
    linkage: str = "ward"
    max_rows: int = 20000
    soft: bool = True
    temperature: float = 0.1

    def __post_init__(self) -> None:
        rows.require(
            "agglomerative",
            rows.at_least(self, count=2, max_rows=self.count, seed=0)
            + rows.one_of(self, linkage=LINKAGES)
            + rows.positive(self, "temperature"),
        )

    def build(self) -> "Agglomerative":
        """Make the clusterer."""
        return Agglomerative(self)


@dataclass(frozen=True)
class SpectralOptions:
    """Spectral clustering (Ng, Jordan and Weiss 2001); memory grows with the square of the rows.

    Attributes:
        count: Number of clusters.
        seed: Of the eigensolver, of k-means on the eigenvectors, and of the choice of rows.
        affinity: ``nearest_neighbors`` or ``rbf``.
        neighbours: Of each row in the graph, for ``nearest_neighbors``.
        max_rows, soft, temperature: See :class:`AgglomerativeOptions`.
    """

    count: int = 4
    seed: int = 0
    affinity: str = "nearest_neighbors"
    neighbours: int = 10
    max_rows: int = 20000
    soft: bool = True
    temperature: float = 0.1

    def __post_init__(self) -> None:
        rows.require(
            "spectral",
            rows.at_least(self, count=2, neighbours=1, max_rows=self.count, seed=0)
            + rows.one_of(self, affinity=AFFINITIES)
            + rows.positive(self, "temperature"),
        )

    def build(self) -> "Spectral":
        """Make the clusterer."""
        return Spectral(self)


CLUSTERERS: dict[str, type[ClustererOptions]] = {
    "kmeans": KMeansOptions,
    "gmm": GMMOptions,
    "agglomerative": AgglomerativeOptions,
    "spectral": SpectralOptions,
    "hdbscan": HDBSCANOptions,
}


class KMeans:
    """See :class:`KMeansOptions`."""

    def __init__(self, options: KMeansOptions) -> None:
        self.options, self.count = options, options.count

    def fit(self, x: np.ndarray) -> Self:
        """Find clusters; see :class:`Clusterer`."""
        from sklearn.cluster import KMeans as Lloyd

        o, x = self.options, rows.checked(x, self.options.count)
        found = Lloyd(o.count, n_init=o.restarts, random_state=o.seed).fit(x)
        self.centroids = found.cluster_centers_
        self._scale = rows.spread(x, self.centroids, found.labels_)
        return self

    def memberships(self, x: np.ndarray) -> np.ndarray:
        """Memberships ``(m, C)``; see :class:`Clusterer`."""
        x, o = rows.checked(x), self.options
        return rows.nearness(x, self.centroids, self._scale * o.temperature, o.soft)


class GMM:
    """See :class:`GMMOptions`."""

    def __init__(self, options: GMMOptions) -> None:
        self.options, self.count = options, options.count

    def fit(self, x: np.ndarray) -> Self:
        """Find components; see :class:`Clusterer`."""
        from sklearn.mixture import GaussianMixture

        o, x = self.options, rows.checked(x, self.options.count)
        self._mixture = GaussianMixture(
            o.count,
            covariance_type=o.covariance,
            n_init=o.restarts,
            reg_covar=o.regularisation,
            random_state=o.seed,
        ).fit(x)
        self.centroids = self._mixture.means_
        return self

    def memberships(self, x: np.ndarray) -> np.ndarray:
        """Memberships ``(m, C)``; see :class:`Clusterer`."""
        x = rows.checked(x)
        found = self._mixture.predict_proba(x) if len(x) else np.zeros((0, self.count))
        return found if self.options.soft else rows.one_hot(found.argmax(axis=1), self.count)


class _ByCentroid:
    """Clusterers that label the fitted rows only: others go to the nearest centroid."""

    def __init__(self, options: Any) -> None:
        self.options, self.count = options, options.count

    def fit(self, x: np.ndarray) -> Self:
        """Find clusters; see :class:`Clusterer`."""
        o, x = self.options, rows.checked(x, self.options.count)
        self._fitted = rows.subsample(x, o.max_rows, o.seed)
        # Numbered without gaps: an empty cluster would be an expert without data.
        found, self._labels = np.unique(self._label(self._fitted), return_inverse=True)
        self.count = len(found)
        means = [self._fitted[self._labels == c].mean(axis=0) for c in range(self.count)]
        self.centroids = np.stack(means)
        self._scale = rows.spread(self._fitted, self.centroids, self._labels)
        return self

    def memberships(self, x: np.ndarray) -> np.ndarray:
        """Memberships ``(m, C)``; see :class:`Clusterer`."""
        x, o = rows.checked(x), self.options
        found = rows.nearness(x, self.centroids, self._scale * o.temperature, o.soft)
        seen, which = rows.find(x, self._fitted)
        own = self._labels[which]
        # Such clusters need not be round: a fitted row may lie nearer to another's centroid.
        torn = seen & (found.argmax(axis=1) != own)
        found[torn] = rows.one_hot(own[torn], self.count)
        return found

    def _label(self, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class Agglomerative(_ByCentroid):
    """See :class:`AgglomerativeOptions`."""

    def _label(self, x: np.ndarray) -> np.ndarray:
        from sklearn.cluster import AgglomerativeClustering

        o = self.options
        return AgglomerativeClustering(o.count, linkage=o.linkage).fit_predict(x)


class Spectral(_ByCentroid):
    """See :class:`SpectralOptions`."""

    def _label(self, x: np.ndarray) -> np.ndarray:
        from sklearn.cluster import SpectralClustering

        o = self.options
        with warnings.catch_warnings():
            # Clusters that lie far apart make a graph in pieces: that is what we look for.
            warnings.filterwarnings("ignore", message="Graph is not fully connected")
            return SpectralClustering(
                o.count,
                affinity=o.affinity,
                n_neighbors=min(o.neighbours, len(x)),
                random_state=o.seed,
            ).fit_predict(x)
