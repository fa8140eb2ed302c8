"""Statistics of clusters against scikit-learn and numbers worked by hand."""

import json

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from espnet_moe.clustering.rows import ClusteringError
from espnet_moe.clustering.statistics import (
    MAX_SPEAKERS,
    cluster_report,
    format_report,
    mutual_information,
    purity,
)

LABELS = [0, 0, 0, 0, 1, 1, 1, -1, -1]
TONGUES = ["hi", "hi", "hi", "pa", "it", "it", "pa", "te", "hi"]
SPEAKERS = ["a", "a", "b", "c", "d", "d", "c", "e", "b"]


@pytest.mark.parametrize("seed", range(4))
def test_nmi_and_purity_are_those_of_scikit_learn(seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 4, 200)
    labels = np.where(draw.random(200) < 0.3 * seed, draw.integers(0, 6, 200), truth)
    names = np.array(["hi", "it", "pa", "te"])[truth]
    expected = normalized_mutual_info_score(truth, labels)
    assert mutual_information(labels, list(names)) == pytest.approx(expected, abs=1e-12)
    table = contingency_matrix(truth, labels)
    assert purity(labels, names) == pytest.approx(table.max(axis=0).sum() / 200)


def test_nmi_at_its_ends() -> None:
    assert mutual_information([2, 2, 0, 1], ["a", "a", "b", "c"]) == pytest.approx(1)
    assert mutual_information([0, 0, 1, 1], ["a", "b", "a", "b"]) == pytest.approx(0, abs=1e-12)
    assert mutual_information([0, 0], ["a", "b"]) == pytest.approx(0, abs=1e-12)
    assert mutual_information([0, 0], ["a", "a"]) == 1
    assert mutual_information([], []) == purity([], []) == 0
    with pytest.raises(ClusteringError, match="2 labels against 1"):
        mutual_information([0, 1], ["a"])


def test_report_by_hand() -> None:
    report = cluster_report(LABELS, TONGUES, SPEAKERS, ["north", "south"])
    assert report["utterances"] == 9
    assert report["clusters"] == 2
    assert report["sizes"] == {"north": 4, "south": 3}
    assert report["noise"] == 2
    assert report["languages"] == {
        "north": {"hi": 3, "pa": 1},
        "south": {"it": 2, "pa": 1},
        "noise": {"hi": 1, "te": 1},
    }
    north = report["speakers"]["north"]
    assert north == {
        "count": 3,
        "largest": "a",
        "largest_share": 0.5,
        "utterances": {"a": 2, "b": 1, "c": 1},
    }
    assert report["purity"] == pytest.approx(5 / 7)
    assert report["nmi"] == pytest.approx(normalized_mutual_info_score(TONGUES[:7], LABELS[:7]))
    json.dumps(report)


def test_many_speakers_are_counted_not_listed() -> None:
    count = MAX_SPEAKERS + 1
    speakers = [f"s{i}" for i in range(count)] + ["s0"] * 4
    report = cluster_report([0] * len(speakers), ["hi"] * len(speakers), speakers)
    assert report["speakers"]["c0"] == {
        "count": count,
        "largest": "s0",
        "largest_share": 5 / (count + 4),
    }


def test_table_for_the_log() -> None:
    table = format_report(cluster_report(LABELS, TONGUES, SPEAKERS))
    rows = [line.split() for line in table.splitlines()]
    assert rows[0] == ["cluster", "utts", "hi", "it", "pa", "te", "speakers", "largest"]
    assert rows[1] == ["c0", "4", "3", "0", "1", "0", "3", "50", "%"]
    assert rows[2] == ["c1", "3", "0", "2", "1", "0", "2", "67", "%"]
    assert rows[3] == ["noise", "2", "1", "0", "0", "1", "2", "50", "%"]
    assert "purity 0.714" in table
    assert len({len(line) for line in table.splitlines()[:-1]}) == 1


def test_noise_only_and_columns_of_different_lengths() -> None:
    report = cluster_report([-1, -1], ["hi", "it"], ["a", "b"])
    assert (report["clusters"], report["noise"], report["nmi"], report["purity"]) == (0, 2, 0, 0)
    assert "of 0 of 2 utterances (2 are noise)" in format_report(report)
    with pytest.raises(ClusteringError, match="3 labels, 2 languages and 3 speakers"):
        cluster_report([0, 0, 1], ["hi", "it"], ["a", "b", "c"])
    with pytest.raises(ClusteringError, match="2 clusters, but 1 names"):
        cluster_report([0, 1], ["hi", "it"], ["a", "b"], ["only"])
