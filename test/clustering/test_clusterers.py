"""Clusterers: planted groups are found, memberships are what they say, seeds hold."""

import builtins
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal

from espnet_moe.clustering import rows
from espnet_moe.clustering.clusterers import CLUSTERERS, ClusteringError, labels_of
from espnet_moe.clustering.reduction import ReductionOptions
from espnet_moe.config import ConfigError, build_options

CONF: dict[str, dict[str, Any]] = {
    "kmeans": {"count": 3},
    "gmm": {"count": 3},
    "agglomerative": {"count": 3},
    "spectral": {"count": 3},
    "hdbscan": {"min_cluster_size": 15, "min_samples": 3},
}


def build(name: str, **more: Any) -> Any:
    return build_options(CLUSTERERS[name], CONF[name] | more, name).build()


def groups(per_group: int = 60, seed: int = 0, dim: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Three groups of different widths around far centres, shuffled; rows and true labels."""
    draw = np.random.default_rng(seed)
    centres = np.zeros((3, dim))
    centres[1, 0], centres[2, 1] = 12, -12
    truth = draw.permutation(np.repeat(np.arange(3), per_group))
    width = np.array([0.6, 1.0, 1.4])[truth, None]
    return centres[truth] + width * draw.standard_normal((len(truth), dim)), truth


def agree(labels: np.ndarray, truth: np.ndarray) -> float:
    """Share of rows (noise left out) that are right when clusters are named by their majority."""
    kept = labels >= 0
    named = {c: np.bincount(truth[labels == c]).argmax() for c in np.unique(labels[kept])}
    assert len(set(named.values())) == 3
    return float(np.mean([named[a] == b for a, b in zip(labels[kept], truth[kept])]))


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("name", CLUSTERERS)
def test_planted_groups_are_found_in_seen_and_unseen_rows(name: str, soft: bool) -> None:
    x, truth = groups()
    unseen, unseen_truth = groups(seed=1)
    clusterer = build(name, soft=soft).fit(x)
    assert clusterer.count == 3
    assert cdist(clusterer.centroids, np.array([x[truth == c].mean(0) for c in range(3)])).min(
        axis=1
    ) == pytest.approx(0, abs=0.5)
    for values, labels in ((x, truth), (unseen, unseen_truth)):
        found = clusterer.memberships(values.astype(np.float32))
        assert found.shape == (len(values), 3)
        noise = ~found.any(axis=1)
        np.testing.assert_allclose(found[~noise].sum(axis=1), 1)
        assert (found >= 0).all()
        assert noise.mean() < (0.25 if name == "hdbscan" else 1e-9)
        assert agree(labels_of(found), labels) == 1
        if not soft:
            assert set(np.unique(found)) <= {0.0, 1.0}


@pytest.mark.parametrize("name", CLUSTERERS)
def test_same_seed_same_memberships_alone_or_in_a_batch(name: str) -> None:
    x, _ = groups(per_group=30)
    first, second = (build(name).fit(x) for _ in range(2))
    unseen, _ = groups(per_group=10, seed=5)
    mixed = np.concatenate([x[:20], unseen])
    together = first.memberships(mixed)
    np.testing.assert_array_equal(together, second.memberships(mixed))
    alone = np.concatenate([first.memberships(row[None]) for row in mixed])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert first.memberships(mixed[:0]).shape == (0, 3)


def test_soft_memberships_of_kmeans_are_the_documented_softmax() -> None:
    x, _ = groups(seed=2)
    clusterer = build("kmeans", temperature=0.7).fit(x)
    squared = cdist(x, clusterer.centroids, "sqeuclidean")
    scale = 0.7 * squared.min(axis=1).mean()
    weights = np.exp(-squared / scale)
    expected = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(clusterer.memberships(x), expected, rtol=1e-8, atol=1e-12)


def test_memberships_of_a_mixture_are_its_posteriors() -> None:
    draw = np.random.default_rng(0)
    x = np.concatenate([draw.normal(0, 1, (400, 2)), draw.normal(3, 1, (400, 2))])
    clusterer = build("gmm", count=2, covariance="full").fit(x)
    at = np.array([[0.0, 0.0], [1.5, 1.5], [3.0, 3.0], [1.0, 1.2]])
    true = np.stack([multivariate_normal([m, m]).pdf(at) for m in (0, 3)], axis=1)
    order = clusterer.centroids[:, 0].argsort()
    np.testing.assert_allclose(
        clusterer.memberships(at)[:, order], true / true.sum(axis=1, keepdims=True), atol=0.1
    )


@pytest.mark.parametrize(
    ("name", "more"), [("spectral", {}), ("agglomerative", {"linkage": "single"})]
)
def test_fitted_rows_keep_a_cluster_that_is_not_round(name: str, more: dict[str, Any]) -> None:
    draw = np.random.default_rng(3)
    angle = draw.uniform(0, 2 * np.pi, 300)
    radius = np.repeat([1.0, 6.0], 150)
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    x += 0.05 * draw.standard_normal(x.shape)
    clusterer = build(name, count=2, **more).fit(x)
    # Rounding as another batch brings must not make a fitted row an unseen one.
    labels = labels_of(clusterer.memberships(x * (1 + 1e-12)))
    assert len({*labels[:150]}) == len({*labels[150:]}) == 1
    assert labels[0] != labels[-1]


@pytest.mark.parametrize("name", ["agglomerative", "spectral", "hdbscan"])
def test_more_rows_than_max_rows_are_clustered_by_a_sample(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    x, truth = groups(per_group=100)
    found = [build(name, max_rows=120, seed=s).fit(x).memberships(x) for s in (1, 1, 2)]
    assert "clustering 120 of 300 rows" in caplog.text
    assert agree(labels_of(found[0]), truth) > 0.99
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_hdbscan_calls_far_rows_noise() -> None:
    x, _ = groups()
    far = np.array([[100.0, 100, 0, 0, 0], [-80.0, 50, 0, 0, 0]])
    together = np.concatenate([x, far])
    clusterer = build("hdbscan").fit(together)
    assert not clusterer.memberships(together)[-2:].any()
    assert not build("hdbscan").fit(x).memberships(far).any()


def test_fitted_rows_keep_their_cluster_where_clusters_touch() -> None:
    draw = np.random.default_rng(0)
    centres, widths = [(0, 0), (3, 0), (0, 4), (2, 2)], [0.3, 0.6, 1.0, 0.3]
    x = np.concatenate(
        [c + w * draw.standard_normal((150, 2)) for c, w in zip(centres, widths, strict=True)]
    )
    clusterer = build("hdbscan", min_cluster_size=10, selection="leaf").fit(x)
    found, labels = clusterer.memberships(x), clusterer._labels
    inside = labels >= 0
    np.testing.assert_array_equal(found[inside].argmax(1), labels[inside])
    assert ((found > 0).sum(1)[inside] > 1).mean() > 0.9  # and they stay soft


def test_hdbscan_without_two_clusters_says_what_to_lower() -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((80, 8))
    with pytest.raises(ClusteringError, match=r"lower min_cluster_size \(40\) or min_samples"):
        build("hdbscan", min_cluster_size=40, min_samples=0).fit(x)
    with pytest.raises(ClusteringError, match="20 rows are too few"):
        build("hdbscan", min_cluster_size=40).fit(x[:20])


@pytest.mark.parametrize("name", CLUSTERERS)
def test_rows_that_cannot_be_clustered(name: str) -> None:
    x, _ = groups()
    x[3, 1] = np.nan
    with pytest.raises(ClusteringError, match="1 of 180 rows hold values that are not finite"):
        build(name).fit(x)
    with pytest.raises(ClusteringError, match="2 rows are too few"):
        build(name).fit(np.eye(2))
    with pytest.raises(ClusteringError, match=r"shape \(n, dim\)"):
        build(name).fit(np.zeros(7))


def test_wrong_options_are_told_together() -> None:
    with pytest.raises(ConfigError, match=r"count is at least 2, not 1; temperature is greater"):
        build("kmeans", count=1, temperature=0.0)
    with pytest.raises(ConfigError, match="linkage 'ward2' is unknown: choose one of ward"):
        build("agglomerative", linkage="ward2")
    with pytest.raises(ConfigError, match="min_cluster_size is at least 2, not 1; epsilon"):
        build("hdbscan", min_cluster_size=1, epsilon=-1.0)
    with pytest.raises(ConfigError, match="unknown key"):
        build("hdbscan", count=3)


@pytest.mark.parametrize("standardise", [True, False])
def test_pca_is_the_projection_on_the_leading_eigenvectors(standardise: bool) -> None:
    draw = np.random.default_rng(1)
    x = draw.standard_normal((60, 6)) @ draw.standard_normal((6, 6)) + 5
    unseen = draw.standard_normal((7, 6))
    options = ReductionOptions(standardise=standardise, method="pca", dims=2)
    reduction = options.build().fit(x)
    mean, scale = x.mean(axis=0), x.std(axis=0) if standardise else 1.0
    vectors = np.linalg.eigh(np.cov(((x - mean) / scale).T))[1][:, ::-1][:, :2]
    for values in (x, unseen):
        expected = (values - mean) / scale @ vectors
        np.testing.assert_allclose(abs(reduction.transform(values)), abs(expected), atol=1e-8)
    np.testing.assert_allclose(options.build().fit_transform(x), reduction.transform(x), atol=1e-9)


def test_standardising_only_and_a_dimension_that_never_varies() -> None:
    x = np.random.default_rng(0).normal(3, 5, (50, 3))
    x[:, 1] = 7
    found = ReductionOptions(method="none").build().fit(x).transform(x)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(found.std(axis=0), [1, 0, 1], atol=1e-12)
    plain = ReductionOptions(method="none", standardise=False).build().fit(x)
    np.testing.assert_array_equal(plain.transform(x), x)


def test_reduction_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClusteringError, match="lower dims to 5 or less"):
        ReductionOptions(dims=6).build().fit(np.random.default_rng(0).random((9, 5)))
    with pytest.raises(ConfigError, match="method 'tsne' is unknown: choose one of none, pca"):
        ReductionOptions(method="tsne")
    real = builtins.__import__

    def without_umap(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "umap":
            raise ImportError("No module named 'umap'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_umap)
    with pytest.raises(ClusteringError, match="umap needs the package umap-learn"):
        ReductionOptions(method="umap").build()


@pytest.mark.slow
def test_umap_keeps_groups_apart() -> None:
    pytest.importorskip("umap")
    x, truth = groups(per_group=40)
    unseen, unseen_truth = groups(per_group=10, seed=4)
    reduction = ReductionOptions(method="umap", dims=2).build()
    clusterer = build("kmeans").fit(reduction.fit_transform(x))
    assert agree(labels_of(clusterer.memberships(reduction.transform(x))), truth) == 1
    found = labels_of(clusterer.memberships(reduction.transform(unseen)))
    assert agree(found, unseen_truth) == 1


def test_subsample_is_seeded_and_in_order() -> None:
    x = np.arange(50.0)[:, None]
    first = rows.subsample(x, 10, seed=3)
    np.testing.assert_array_equal(first, rows.subsample(x, 10, seed=3))
    assert (np.diff(first[:, 0]) > 0).all()
    assert rows.subsample(x, 50, seed=3) is x
