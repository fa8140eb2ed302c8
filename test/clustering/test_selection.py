"""The number of clusters: the planted one is chosen, scores are scikit-learn's silhouettes."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from espnet_moe.clustering.clusterers import (
    AgglomerativeOptions,
    ClusteringError,
    KMeansOptions,
    labels_of,
)
from espnet_moe.clustering.hdbscan_clusterer import HDBSCANOptions
from espnet_moe.clustering.selection import SelectionOptions, select_count
from espnet_moe.config import ConfigError


def groups(count: int, per_group: int = 40, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    centres = 15 * np.eye(count, 6)
    return np.concatenate([c + draw.standard_normal((per_group, 6)) for c in centres])


def silhouette(x: np.ndarray, labels: np.ndarray, metric: str) -> float:
    """Rousseeuw's definition, row by row."""
    distance, scores = cdist(x, x, metric), []
    for i, own in enumerate(labels):
        mates = labels == own
        mates[i] = False
        a = distance[i, mates].mean()
        b = min(distance[i, labels == c].mean() for c in set(labels) - {own})
        scores.append((b - a) / max(a, b))
    return float(np.mean(scores))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("planted", [3, 5])
def test_planted_number_is_chosen(
    planted: int, metric: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    x = groups(planted)
    found = select_count(x, KMeansOptions(), SelectionOptions((6, 2, 3, 4, 5), metric))
    assert (
        found.count == planted == found.clusterer.count == max(found.scores, key=found.scores.get)
    )
    assert list(found.scores) == [2, 3, 4, 5, 6]
    labels = labels_of(found.clusterer.memberships(x))
    assert found.scores[planted] == pytest.approx(silhouette(x, labels, metric), abs=1e-9)
    for count, score in found.scores.items():
        assert f"{count} clusters: silhouette {score:.4f} ({metric})" in caplog.text


def test_silhouette_of_a_sample_is_seeded() -> None:
    x = groups(3)
    sampled = SelectionOptions((2, 3, 4), max_rows=50, seed=1)
    first, second = (select_count(x, AgglomerativeOptions(), sampled) for _ in range(2))
    assert first.count == 3
    assert first.scores == second.scores
    assert (
        first.scores != select_count(x, AgglomerativeOptions(), SelectionOptions((2, 3, 4))).scores
    )


def test_what_cannot_be_selected() -> None:
    with pytest.raises(ClusteringError, match="hdbscan finds the number of clusters itself"):
        select_count(groups(3), HDBSCANOptions(), SelectionOptions())
    with pytest.raises(ClusteringError, match="6 rows are too few"):
        select_count(groups(3, per_group=2), KMeansOptions(), SelectionOptions((2, 9)))
    with pytest.raises(ConfigError, match="candidate 1 is no number of clusters"):
        SelectionOptions((1, 2))
    with pytest.raises(
        ConfigError, match="metric 'l1' is unknown: choose one of euclidean, cosine"
    ):
        SelectionOptions(metric="l1")


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_rows_that_are_all_alike() -> None:
    with pytest.raises(ClusteringError, match="none of 2, 3 clusters parts the 20 rows"):
        select_count(np.ones((20, 3)), KMeansOptions(), SelectionOptions((2, 3)))
