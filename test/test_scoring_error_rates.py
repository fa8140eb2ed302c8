"""Edit counts against the textbook's recursion, the bootstrap against a slow loop."""

import numpy as np
import pytest

from espnet_moe.scoring.error_rates import bootstrap_interval, bootstrap_rates, count_edits


def levenshtein(left: list[str] | str, right: list[str] | str) -> int:
    """The textbook recursion, row by row (Wagner and Fischer 1974)."""
    above = list(range(len(right) + 1))
    for row, old in enumerate(left, start=1):
        here = [row]
        for column, new in enumerate(right, start=1):
            swap = above[column - 1] + (old != new)
            here.append(min(swap, above[column] + 1, here[-1] + 1))
        above = here
    return above[-1]


def test_counts_against_textbook_levenshtein() -> None:
    generator = np.random.default_rng(1)
    words = ["a", "bb", "कि", "की", "é"]
    texts = [" ".join(generator.choice(words, generator.integers(1, 9))) for _ in range(200)]
    references, hypotheses = texts[:100], [*texts[100:199], ""]
    for unit, split in (("word", str.split), ("character", list)):
        counts, alignments = count_edits(references, hypotheses, unit)
        expected = [
            levenshtein(split(reference), split(hypothesis))
            for reference, hypothesis in zip(references, hypotheses, strict=True)
        ]
        assert counts.errors.tolist() == expected
        assert counts.lengths.tolist() == [len(split(reference)) for reference in references]
        kept = [[t for t in a.hypothesis if t is not None] for a in alignments]
        assert kept == [split(hypothesis) for hypothesis in hypotheses]


def test_bootstrap_equals_a_slow_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espnet_moe.scoring.error_rates._DRAWS_AT_ONCE", 37 * 7)
    generator = np.random.default_rng(2)
    lengths = generator.integers(1, 12, 37)
    errors = generator.integers(0, lengths + 1)
    picks = np.random.default_rng(3)
    expected = []
    for _ in range(1000):
        drawn = [int(index) for index in picks.integers(37, size=37)]
        wrong = sum(int(errors[index]) for index in drawn)
        expected.append(100 * wrong / sum(int(lengths[index]) for index in drawn))
    assert bootstrap_rates(errors, lengths, 1000, seed=3).tolist() == expected
    ordered = sorted(expected)
    low, high = bootstrap_interval(errors, lengths, 1000, seed=3)
    assert ordered[24] <= low <= ordered[25]
    assert ordered[974] <= high <= ordered[975]


def test_intervals_cover_the_true_rate() -> None:
    generator = np.random.default_rng(4)
    lengths = np.full(60, 8)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(generator.binomial(lengths, 0.2), lengths, 1000, seed=0)
        covered += low <= 20 <= high
    assert 0.88 * 200 <= covered <= 0.99 * 200
