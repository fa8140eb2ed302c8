"""From memberships to experts, by hand-worked examples; whole speakers drawn to a fraction."""

import numpy as np
import pytest

from espnet_moe.clustering.assignment import (
    Assignment,
    AssignmentError,
    AssignOptions,
    SplitOptions,
    assign,
    speakers_for_experts,
)
from espnet_moe.config import ConfigError, build_options

# Four clusters on a line; cluster 3 has a single row, next to cluster 2.
VALUES = np.array([[0.0], [0.2], [5.0], [5.2], [9.0], [9.2], [10.0], [7.0]])
LABELS = [0, 0, 1, 1, 2, 2, 3, 1]
IDS = [f"s-{number}" for number in range(8)]


def one_hot(labels: list[int], count: int) -> np.ndarray:
    return (np.array(labels)[:, None] == np.arange(count)).astype(float)


def make(memberships: np.ndarray, train: list[bool] | None = None, **options: object) -> Assignment:
    chosen = None if train is None else np.array(train)
    values = VALUES[: len(memberships)]
    ids = IDS[: len(memberships)]
    made = AssignOptions(**options)  # type: ignore[arg-type]
    return assign(ids, ["hi"] * len(ids), memberships, made, values, chosen)


def test_hard_memberships_are_the_experts() -> None:
    made = make(one_hot(LABELS, 4))
    assert made.experts == ("c0", "c1", "c2", "c3")
    np.testing.assert_array_equal(made.weights, one_hot(LABELS, 4))
    assert not made.dropped.any()


def test_small_clusters_go_to_the_nearest_centroid() -> None:
    made = make(one_hot(LABELS, 4), min_size=2)
    assert made.experts == ("c0", "c1", "c2")
    assert made.weights.argmax(axis=1).tolist() == [0, 0, 1, 1, 2, 2, 2, 1]
    assert any("cluster 3 (1 training utterances, fewer than 2)" in note for note in made.notes)
    # c0 and c1 have three and more only once the others have come to them.
    made = make(one_hot(LABELS, 4), min_size=3)
    assert made.weights.argmax(axis=1).tolist() == [0, 0, 0, 0, 1, 1, 1, 0]
    with pytest.raises(AssignmentError, match="lower min_size"):
        make(one_hot(LABELS, 4), min_size=6)


def test_sizes_and_centroids_are_of_training_rows() -> None:
    # Of cluster 2, one row is in training: too few.
    made = make(one_hot(LABELS, 4), [True] * 4 + [True, False, True, True], min_size=2)
    assert made.experts == ("c0", "c1", "c2")
    assert made.weights.argmax(axis=1).tolist() == [0, 0, 1, 1, 2, 2, 2, 1]


def noisy() -> np.ndarray:
    memberships = one_hot(LABELS, 4)[:, :3]
    memberships[6] = memberships[7] = 0  # at 10.0 and 7.0
    return memberships


def test_noise_is_given_to_the_nearest() -> None:
    made = make(noisy())
    assert made.experts == ("c0", "c1", "c2") and not made.dropped.any()
    assert made.weights.argmax(axis=1).tolist() == [0, 0, 1, 1, 2, 2, 2, 1]


def test_noise_is_dropped_from_training_only() -> None:
    made = make(noisy(), [True] * 7 + [False], noise="drop")
    assert made.dropped.tolist() == [False] * 6 + [True, False]
    np.testing.assert_allclose(made.weights.sum(axis=1), 1)  # dev and test are decoded all the same
    assert made.weights[7].argmax() == 1


def test_noise_as_an_expert() -> None:
    made = make(noisy(), noise="expert")
    assert made.experts == ("c0", "c1", "c2", "noise")
    assert made.weights.argmax(axis=1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    # Too few for an expert: to the nearest.
    made = make(noisy(), [True] * 6 + [True, False], noise="expert", min_size=2)
    assert made.experts == ("c0", "c1", "c2")
    assert make(one_hot(LABELS, 4), noise="expert").experts == ("c0", "c1", "c2", "c3")


SOFT = np.array([[0.5, 0.3, 0.2], [0.1, 0.85, 0.05], [0.2, 0.2, 0.6]])


def test_soft_top_k_is_renormalised() -> None:
    made = make(SOFT, hard=False, top_k=2)
    expected = [[0.5 / 0.8, 0.3 / 0.8, 0], [0.1 / 0.95, 0.85 / 0.95, 0], [0.25, 0, 0.75]]
    np.testing.assert_allclose(made.weights, expected)
    np.testing.assert_allclose(make(SOFT, hard=False).weights, SOFT)
    np.testing.assert_array_equal(make(SOFT).weights, one_hot([0, 1, 2], 3))


def test_small_weights_go_but_the_strongest_stays() -> None:
    made = make(SOFT, hard=False, min_weight=0.25)
    np.testing.assert_allclose(made.weights, [[0.625, 0.375, 0], [0, 1, 0], [0, 0, 1]])
    made = make(SOFT, hard=False, min_weight=0.9)
    np.testing.assert_array_equal(made.weights, one_hot([0, 1, 2], 3))


def test_merging_adds_soft_memberships() -> None:
    soft = np.array([[0.9, 0.1, 0], [0.9, 0.1, 0], [0, 0.6, 0.4], [0, 0.35, 0.65]])
    # The second cluster has the third row only; its centroid, 4.2, is nearest to the third's, 5.1.
    made = make(soft, hard=False, min_size=2)
    np.testing.assert_allclose(made.weights, [[0.9, 0.1], [0.9, 0.1], [0, 1], [0, 1]])


def test_languages_are_experts_in_the_order_of_training() -> None:
    languages = ["te", "hi", "te", "it"]
    made = assign(IDS[:4], languages, None, SplitOptions())
    assert made.experts == ("te", "hi", "it")
    assert made.weights.argmax(axis=1).tolist() == [0, 1, 0, 2]
    with pytest.raises(AssignmentError, match="no training utterance for it"):
        assign(IDS[:4], languages, None, SplitOptions(), train=np.array([True] * 3 + [False]))


def test_errors_name_what_does_not_fit() -> None:
    with pytest.raises(AssignmentError, match="top_k is 4, but there are 3 experts"):
        make(SOFT, hard=False, top_k=4)
    with pytest.raises(AssignmentError, match="of 1 utterances .*: s-2"):
        make(np.array([[1, 0], [0, 1], [0.3, 0.3]]))
    with pytest.raises(AssignmentError, match="8 ids, but 3 languages"):
        assign(IDS, ["hi"] * 3, one_hot(LABELS, 4), AssignOptions(), VALUES)
    with pytest.raises(AssignmentError, match="needs what was clustered"):
        assign(IDS, ["hi"] * 8, noisy(), AssignOptions())


def test_options_are_checked_together() -> None:
    conf = {"fraction": 0, "top_k": 2, "noise": "keep", "min_size": 0, "count": 3}
    conf |= {"candidates": [2, 3], "clusterer": {"count": 4}, "seed": -1}
    with pytest.raises(ConfigError) as error:
        build_options(AssignOptions, conf, "assign")
    for said in ("fraction", "top_k needs hard: false", "noise", "min_size", "exclude", "seed"):
        assert said in str(error.value)
    assert "count stands beside clusterer" in str(error.value)


def reached(audio: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    return audio[drawn].sum(axis=0) / audio.sum(axis=0)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_the_fraction_is_reached_for_every_expert(fraction: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    audio = rng.uniform(5, 60, (200, 4)) * (rng.random((200, 4)) < 0.4)  # over several clusters
    drawn = speakers_for_experts(audio, fraction, seed)
    np.testing.assert_allclose(reached(audio, drawn), fraction, atol=0.02)
    np.testing.assert_array_equal(drawn, speakers_for_experts(audio, fraction, seed))
    assert (drawn != speakers_for_experts(audio, fraction, seed + 1)).any()


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.99])
def test_both_sides_of_every_expert_have_a_speaker(fraction: float) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        main = np.repeat(np.arange(3), 2)  # two speakers an expert
        audio = rng.uniform(1, 100, 6)[:, None] * one_hot(main.tolist(), 3)
        share = reached(audio, speakers_for_experts(audio, fraction, seed))
        assert (share > 0).all() and (share < 1).all()


def test_a_single_speaker_trains_its_expert() -> None:
    audio = np.array([[10.0, 0], [10, 0], [10, 0], [0, 10]])
    for seed in range(5):
        assert speakers_for_experts(audio, 0.3, seed)[3]
    assert speakers_for_experts(audio, 1.0, 0).all()
