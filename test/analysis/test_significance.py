"""Tests of differences: NIST's worked example, scipy, and planted systems."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from espnet_moe.analysis.decodings import DecodedSets
from espnet_moe.analysis.significance import (
    bootstrap_p,
    error_segments,
    holm,
    mapsswe,
    significance,
)
from espnet_moe.errors import UserError
from espnet_moe.scoring.error_rates import bootstrap_rates, count_edits


def segments(reference: str, first: str, second: str) -> list[tuple[int, int]]:
    pair = [count_edits([reference], [text], "word")[1][0] for text in (first, second)]
    return error_segments(*pair)


def test_the_example_of_nist():
    # The page of NIST's tools on the matched-pair sentence-segment word error test.
    found = segments(
        "it was the best of times it was the worst of times it was",
        "its the best of times it is the worst of times or it was",
        "it was the best times it won the test of times it was",
    )
    assert found == [(2, 0), (0, 1), (1, 2), (1, 0)]
    # Z = 2, -1, -1, 1: mean 1/4, variance 9/4, W = 1/4 / (3/2 / 2).
    tested = mapsswe(found)
    assert tested["segments"] == 4 and tested["mean"] == 0.25
    assert tested["statistic"] == pytest.approx(1 / 3)
    assert tested["p"] == pytest.approx(2 * scipy.stats.norm.sf(1 / 3))


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ("a b c d e", "a b c d e", []),
        ("x b y d e", "a b c d e", [(2, 0)]),  # one word right in both bounds nothing
        ("x b c y e", "a b c d e", [(1, 0), (1, 0)]),  # two do
        ("x b z c d e", "a b c d e", [(2, 0)]),  # an insertion parts them
        ("", "a b c d e", [(5, 0)]),
        ("a b c d e z", "z a b c d e", [(0, 1), (1, 0)]),  # at the ends
        ("a z b c d e", "a z z b c d e", [(1, 2)]),
    ],
)
def test_segments(first, second, wanted):
    assert segments("a b c d e", first, second) == wanted


def test_segments_need_one_reference():
    a = count_edits(["a b"], ["a"], "word")[1][0]
    b = count_edits(["a c"], ["a"], "word")[1][0]
    with pytest.raises(UserError, match="same references"):
        error_segments(a, b)


def test_mapsswe_without_a_spread():
    assert mapsswe([]) == {"segments": 0, "mean": 0.0, "statistic": None, "p": 1.0}
    assert mapsswe([(1, 1), (2, 2)])["p"] == 1.0
    assert mapsswe([(1, 0), (1, 0)])["p"] is None
    z = [(1, 0), (0, 2), (3, 1), (1, 0), (1, 1)]
    want = scipy.stats.ttest_rel([a for a, _ in z], [b for _, b in z]).statistic
    assert mapsswe(z)["statistic"] == pytest.approx(want)


def test_holm_by_hand():
    # 4 tests: 0.01 · 4, 0.02 · 3, max with 0.03 · 2, and 0.2.
    assert holm([0.03, 0.01, 0.2, 0.02]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
    assert holm([None, 0.04, 0.5]) == [None, 0.08, 0.5]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_p_of_draws():
    assert bootstrap_p(np.zeros(999)) == 1.0
    assert bootstrap_p(np.full(999, 2.0)) == pytest.approx(2 / 1000)
    assert bootstrap_p(np.linspace(-1, 9, 999)) == pytest.approx(0.2, abs=0.01)


@pytest.fixture
def experiment(tmp_path: Path, make_datadir) -> Path:
    """Three systems: the first errs in half of the utterances, the others in one of twenty."""
    data = make_datadir(tmp_path / "raw" / "test_it", {"it": 60})
    texts = dict(line.split(maxsplit=1) for line in (data / "text").read_text().splitlines())
    for system, every in (("baseline", 2), ("hard", 20), ("soft", 20)):
        lines = []
        for number, (utt, text) in enumerate(texts.items()):
            shown = "nulla" if (number + (system == "soft")) % every == 0 else text
            lines.append(f"{utt} {shown}\n")
        folder = tmp_path / "exp" / system / "greedy" / "test_it"
        folder.mkdir(parents=True)
        (folder / "text").write_text("".join(lines))
    return tmp_path


def test_planted_systems(experiment):
    which = DecodedSets(
        experiment / "exp",
        experiment / "raw",
        "greedy",
        ("baseline", "hard", "soft", "none"),
        ("test_it",),
    )
    content = significance(which).content()
    rows = {(r["first"], r["second"]): r for r in content["results"]["rows"]}
    for other in ("hard", "soft"):
        row = rows["baseline", other]
        assert row["mapsswe_significant"] and row["bootstrap_significant"]
        assert 0 < row["interval"][0] < row["difference"] < row["interval"][1]
    row = rows["hard", "soft"]
    assert not row["mapsswe_significant"] and not row["bootstrap_significant"]
    assert row["mapsswe_p"] <= row["mapsswe_p_holm"]
    assert "decode the set first" in content["not_available"]["none on test_it"]
    assert "bootstrap_significant" not in content["not_available"]


def test_the_interval_is_that_of_scoring(experiment):
    which = DecodedSets(
        experiment / "exp", experiment / "raw", "greedy", ("baseline", "hard"), ("test_it",)
    )
    found = significance(which, 1000, 4)
    row = found.results["rows"][0]
    counts = [d.counts for d in which.read()[0]]
    draws = [bootstrap_rates(c.errors, c.lengths, 1000, (4, 60)) for c in counts]
    assert row["interval"] == pytest.approx(tuple(np.percentile(draws[0] - draws[1], [2.5, 97.5])))


def test_nothing_to_compare(experiment):
    exp, raw = experiment / "exp", experiment / "raw"
    with pytest.raises(UserError, match="makes no comparison"):
        significance(DecodedSets(exp, raw, "greedy", ("hard",), ("test_it",)))
    with pytest.raises(UserError, match="nothing to analyse.*decode the set first"):
        significance(DecodedSets(exp, raw, "beam", ("hard", "soft"), ("test_it",)))
    with pytest.raises(UserError, match=r"results.json does not exist"):
        significance(DecodedSets(exp, raw, "greedy"))
