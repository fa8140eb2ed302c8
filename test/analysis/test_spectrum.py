"""Ranks of matrices whose spectrum is known."""

import numpy as np
import pytest

from espnet_moe.analysis.spectrum import effective_rank, energy, rank_for, spectrum, stable_rank
from espnet_moe.analysis.updates import Update, read_experts


def test_constructed_spectra():
    flat = np.ones(6)
    assert effective_rank(flat) == pytest.approx(6) and stable_rank(flat) == pytest.approx(6)
    one = np.array([3.0, 0.0, 0.0])
    assert effective_rank(one) == pytest.approx(1) and stable_rank(one) == pytest.approx(1)
    # Shares 1/2, 1/4, 1/4: an entropy of 1.5 bits.
    assert effective_rank(np.array([2.0, 1.0, 1.0])) == pytest.approx(2**1.5)
    assert stable_rank(np.array([2.0, 1.0, 1.0])) == pytest.approx(1.5)
    assert effective_rank(np.zeros(3)) == stable_rank(np.zeros(3)) == 0


def test_energy():
    values = np.array([3.0, 2.0, 1.0])  # squares 9, 4, 1
    np.testing.assert_allclose(energy(values), [9 / 14, 13 / 14, 1])
    assert [rank_for(values, share) for share in (0.5, 9 / 14, 0.7, 0.95, 1.0)] == [1, 1, 2, 3, 3]
    assert rank_for(np.zeros(2), 0.9) == 0


@pytest.mark.parametrize("rank", [3, 20])
def test_singular_values_are_those_of_the_product(rank):
    draw = np.random.default_rng(0)
    update = Update(draw.normal(size=(12, rank)), draw.normal(size=(rank, 9)))
    values = update.singular_values
    want = np.linalg.svd(update.up @ update.down, compute_uv=False)[: len(values)]
    np.testing.assert_allclose(values, want, atol=1e-9)
    left, values, right = update.decomposed
    np.testing.assert_allclose(left * values @ right.T, update.up @ update.down, atol=1e-9)


def test_an_expert_that_uses_one_direction(save_random):
    def flatten(experts):
        for layer in experts.layers.values():
            layer.B(0)[:, 1:] = 0

    content = spectrum(read_experts(save_random("hi", "it", change=flatten))).content()
    found = content["results"]["experts"]
    assert {row["rank"] for row in found["hi"]["modules"]} == {1}
    assert found["hi"]["means"]["all"]["effective_rank"] == pytest.approx(1)
    assert found["it"]["means"]["all"]["effective_rank"] > 2
    assert found["it"]["modules"][0]["largest_rank"] == 4
    assert found["hi"]["means"]["encoder.0"]["layers"] == 2  # q_proj and fc1
    assert found["hi"]["means"]["all"]["energy"] == pytest.approx([1, 1, 1, 1])
