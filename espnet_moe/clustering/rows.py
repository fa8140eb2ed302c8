"""What the clusterers share: rows checked, drawn from, found again; options checked."""

import logging
from typing import Any

import numpy as np

from espnet_moe.config import ConfigError
from espnet_moe.errors import UserError


class ClusteringError(UserError):
    """Rows that cannot be clustered as asked."""


def checked(x: np.ndarray, at_least: int = 0) -> np.ndarray:
    """Rows ``(n, dim)`` in double precision.

    Raises:
        ClusteringError: For another shape, fewer rows than ``at_least``, or values not finite.
    """
    x = np.ascontiguousarray(x, dtype=np.float64)
    if x.ndim != 2:
        raise ClusteringError(f"rows to cluster have the shape (n, dim), not {x.shape}")
    if len(x) < at_least:
        raise ClusteringError(
            f"{len(x)} rows are too few for {at_least} clusters or rows a cluster: "
            "lower count or min_cluster_size, or give more utterances"
        )
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x).all(axis=1)).sum())
        raise ClusteringError(f"{bad} of {len(x)} rows hold values that are not finite")
    return x


def subsample(x: np.ndarray, max_rows: int, seed: int) -> np.ndarray:
    """At most ``max_rows`` of the rows, drawn with a seed, in their order."""
    if len(x) <= max_rows:
        return x
    logging.info("clustering %d of %d rows (max_rows); the rest is placed after", max_rows, len(x))
    chosen = np.random.default_rng(seed).choice(len(x), max_rows, replace=False)
    return x[np.sort(chosen)]


def find(x: np.ndarray, fitted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows ``(m,)`` are among the fitted ones, and as which of them.

    Within rounding: the same utterance reduced in another batch differs in its last bits.
    """
    from sklearn.neighbors import NearestNeighbors

    if not len(x):
        return np.zeros(0, dtype=bool), np.zeros(0, dtype=int)
    distance, which = NearestNeighbors(n_neighbors=1).fit(fitted).kneighbors(x)
    size = np.sqrt((fitted**2).sum(axis=1).mean()) or 1.0
    return distance[:, 0] <= 1e-6 * size, which[:, 0]


def _squared(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Squared distances ``(m, C)``, without cancellation."""
    return np.stack([((x - c) ** 2).sum(axis=1) for c in centroids], axis=1)


def spread(x: np.ndarray, centroids: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance of rows to the centroid of their cluster; never 0."""
    return float(((x - centroids[labels]) ** 2).sum(axis=1).mean()) or 1.0


def nearness(x: np.ndarray, centroids: np.ndarray, scale: float, soft: bool) -> np.ndarray:
    """Softmax over ``-d² / scale`` to every centroid ``(m, C)``, or 1 for the nearest."""
    squared = _squared(x, centroids)
    if not soft:
        return one_hot(squared.argmin(axis=1), len(centroids))
    weights = np.exp(-(squared - squared.min(axis=1, keepdims=True)) / scale)
    return weights / weights.sum(axis=1, keepdims=True)


def one_hot(labels: np.ndarray, count: int) -> np.ndarray:
    """``(m,)`` labels → ``(m, count)``; a negative label is a row of zeros."""
    return (labels[:, None] == np.arange(count)).astype(np.float64)


def at_least(options: Any, **least: int) -> list[str]:
    """What is wrong with options that have a lower limit."""
    return [
        f"{name} is at least {limit}, not {getattr(options, name)}"
        for name, limit in least.items()
        if getattr(options, name) < limit
    ]


def positive(options: Any, *names: str) -> list[str]:
    """What is wrong with options that must be greater than 0."""
    values = {name: getattr(options, name) for name in names}
    return [f"{n} is greater than 0, but {v} is not" for n, v in values.items() if not v > 0]


def one_of(options: Any, **legal: tuple[str, ...]) -> list[str]:
    """What is wrong with options that name a choice."""
    return [
        f"{name} '{getattr(options, name)}' is unknown: choose one of {', '.join(names)}"
        for name, names in legal.items()
        if getattr(options, name) not in names
    ]


def require(name: str, problems: list[str]) -> None:
    """Raise a ``ConfigError`` with all problems of the options ``name``, if there are any."""
    if problems:
        raise ConfigError(f"{name}: {'; '.join(problems)}")
