"""Debiased linear CKA against the estimator written over Gram matrices, and its invariances."""

import numpy as np
import pytest

from espnet_moe.analysis.cka import Representations, cka_matrix, cka_results, linear_cka
from espnet_moe.errors import UserError


def unbiased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Song et al. 2012, equation 5, over Gram matrices without their diagonals."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    ones = np.ones(n)
    whole = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + whole - 2 / (n - 2) * ones @ k @ m @ ones) / (n * (n - 3))


def by_gram(x: np.ndarray, y: np.ndarray) -> float:
    k, m = x @ x.T, y @ y.T
    return unbiased_hsic(k, m) / np.sqrt(unbiased_hsic(k, k) * unbiased_hsic(m, m))


@pytest.fixture
def spaces() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(40, 12)) @ np.diag(np.linspace(0.2, 3, 12)) + 5
    return x, x[:, :7] @ draw.normal(size=(7, 9)) + 2 * draw.normal(size=(40, 9))


def test_equals_the_estimator_over_gram_matrices(spaces):
    x, y = spaces
    assert linear_cka(x, y) == pytest.approx(by_gram(x, y), rel=1e-9)
    assert linear_cka(x, x) == pytest.approx(1)


def test_rotations_and_scales_change_nothing_other_maps_do(spaces):
    x, y = spaces
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))[0]
    assert linear_cka(x @ rotation, y) == pytest.approx(linear_cka(x, y))
    assert linear_cka(3 * x + 1, y) == pytest.approx(linear_cka(x, y))
    stretched = x * np.linspace(1, 30, 12)
    assert abs(linear_cka(stretched, y) - linear_cka(x, y)) > 0.02


def test_wide_independent_spaces_are_not_alike():
    # The biased estimate of 200 dimensions from 50 examples is far above 0.
    draw = np.random.default_rng(2)
    values = [linear_cka(*draw.normal(size=(2, 50, 200))) for _ in range(20)]
    assert abs(np.mean(values)) < 0.02


def test_matrix_and_interval():
    draw = np.random.default_rng(3)
    owners = np.repeat(np.arange(30), 8)
    base = draw.normal(size=(240, 10))
    near, far = base + 0.3 * draw.normal(size=base.shape), draw.normal(size=base.shape)
    frames = {"output": np.stack([base, near, far])}
    own = Representations(("base", "near", "far"), ("output",), frames, owners)
    found = cka_results({"hi": own, "it": own}, 0)
    values = np.array(found["hi"]["layers"][0]["values"])
    assert values[0, 1] == pytest.approx(linear_cka(base, near))
    assert values[0, 1] > 0.8 > 0.2 > abs(values[0, 2])
    low, high = np.moveaxis(found["hi"]["layers"][0]["interval"], -1, 0)
    assert (low <= values).all() and (values <= high).all() and high[0, 2] - low[0, 2] > 0.01
    assert (found["all"]["frames"], found["all"]["utterances"]) == (480, 60)


def test_what_cannot_be_compared():
    few = Representations(("base",), ("output",), {"output": np.zeros((1, 9, 3))}, np.arange(9))
    with pytest.raises(UserError, match="hi: CKA needs 50 frames"):
        cka_results({"hi": few}, 0)
    with pytest.raises(UserError, match="4 or more"):
        linear_cka(np.zeros((3, 2)), np.zeros((3, 2)))
    assert np.isnan(cka_matrix(np.zeros((2, 5, 3)))).all()
