"""Rows standardised and brought to fewer dimensions, all as the fitted ones were."""

import logging
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from espnet_moe.clustering import rows
from espnet_moe.clustering.rows import ClusteringError

METHODS = ("none", "pca", "umap")


@dataclass(frozen=True)
class ReductionOptions:
    """What is done to embeddings before they are clustered.

    Attributes:
        standardise: Give every dimension mean 0 and variance 1 over the fitted rows.
        method: ``none``, ``pca``, or ``umap`` (McInnes et al., arXiv:1802.03426; package
            umap-learn).
        dims: Dimensions that are left; not used with ``none``.
        seed: Of the reduction.
        neighbours: Of each row, for ``umap``.
        min_dist: How near rows may come to each other, for ``umap``; 0 suits clustering.
    """

    standardise: bool = True
    method: str = "pca"
    dims: int = 10
    seed: int = 0
    neighbours: int = 15
    min_dist: float = 0.0

    def __post_init__(self) -> None:
        problems = rows.at_least(self, dims=1, seed=0, neighbours=2)
        if not 0 <= self.min_dist <= 1:
            problems.append(f"min_dist is in 0..1, not {self.min_dist}")
        rows.require("reduction", problems + rows.one_of(self, method=METHODS))

    def build(self) -> "Reduction":
        """Make the reduction.

        Raises:
            ClusteringError: Where it needs a package that is not installed.
        """
        return Reduction(self)


class Reduction:
    """Fit on the training rows, then bring any rows to the same dimensions.

    Args:
        options: What to do.

    Raises:
        ClusteringError: Where it needs a package that is not installed.
    """

    def __init__(self, options: ReductionOptions = ReductionOptions()) -> None:
        self.options = options
        self._steps: list[Any] = []
        self._umap = _import_umap() if options.method == "umap" else None

    def fit(self, x: np.ndarray) -> Self:
        """Learn from rows ``(n, dim)``.

        Raises:
            ClusteringError: For more dimensions than the rows have, or too few rows.
        """
        self.fit_transform(x)
        return self

    def fit_transform(self, x: np.ndarray) -> np.ndarray:
        """Learn from rows ``(n, dim)`` and return them reduced ``(n, dims)``."""
        x = rows.checked(x, at_least=2)
        steps = self._plan(x)
        given = x.shape[1]
        for step in steps:
            x = np.asarray(step.fit_transform(x), dtype=np.float64)
        self._steps = steps
        if self.options.method == "pca":
            kept = 100 * float(steps[-1].explained_variance_ratio_.sum())
            logging.info("PCA: %d of %d dimensions, %.1f %% of variance", x.shape[1], given, kept)
        return x

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Rows ``(m, dim)`` → ``(m, dims)`` as the fitted rows were reduced."""
        x = rows.checked(x)
        for step in self._steps:
            x = np.asarray(step.transform(x), dtype=np.float64)
        return x

    def _plan(self, x: np.ndarray) -> list[Any]:
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import StandardScaler

        o = self.options
        steps: list[Any] = [StandardScaler()] if o.standardise else []
        most = {"none": o.dims, "pca": min(x.shape), "umap": min(x.shape[1], len(x) - 2)}[o.method]
        if o.dims > most:
            raise ClusteringError(
                f"{o.method} cannot leave {o.dims} dimensions of {len(x)} rows with "
                f"{x.shape[1]}: lower dims to {most} or less"
            )
        if o.method == "pca":
            steps.append(PCA(o.dims, svd_solver="full"))
        if self._umap is not None:
            steps.append(
                self._umap.UMAP(
                    n_components=o.dims,
                    n_neighbors=min(o.neighbours, len(x) - 1),
                    min_dist=o.min_dist,
                    random_state=o.seed,
                    n_jobs=1,  # with a seed it is one anyway, and warns
                )
            )
        return steps


def _import_umap() -> Any:
    try:
        import umap
    except ImportError as error:
        raise ClusteringError(
            f"reduction method umap needs the package umap-learn, which is not there ({error}): "
            "install it, or take method pca or none"
        ) from error
    return umap
