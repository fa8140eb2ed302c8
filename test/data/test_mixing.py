"""Shares and hours of training sets, against counts by hand."""

import numpy as np
import pytest

from espnet_moe.data.datadir import DataDirError
from espnet_moe.data.mixing import MixOptions, choose

HOUR = 3600 * 16000
LONG = {f"a-{i:03d}": HOUR // 100 for i in range(200)}  # 2 h in 200 utterances
SHORT = {f"b-{i:03d}": HOUR // 1000 for i in range(500)}  # 0.5 h in 500


def hours(source, taken):
    return sum(source[key] * count for key, count in taken.items()) / HOUR


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # The scarce source gives all, and the other one as much as goes with it.
        (MixOptions([0.8, 0.2]), (2.0, 0.5)),
        (MixOptions([1, 1]), (0.5, 0.5)),
        (MixOptions([1, 3]), (0.5 / 3, 0.5)),
        (MixOptions([1, 3], replacement=True), (0.625, 1.875)),
        (MixOptions([1, 1], max_hours=0.2), (0.1, 0.1)),
        (MixOptions([1, 0]), (2.0, 0.0)),
    ],
)
def test_hours(options, expected):
    taken = choose([LONG, SHORT], options)
    found = tuple(hours(s, t) for s, t in zip((LONG, SHORT), taken, strict=True))
    assert found == pytest.approx(expected, abs=0.011)  # an utterance
    if not options.replacement:
        assert all(count == 1 for part in taken for count in part.values())


def test_utterances():
    assert [len(t) for t in choose([LONG, SHORT], MixOptions([1, 1], by="utterances"))] == [200] * 2
    again = MixOptions([9, 1], by="utterances", replacement=True)
    long, short = choose([LONG, SHORT], again)
    assert (sum(long.values()), sum(short.values())) == (630, 70)
    assert set(long.values()) == {3, 4}  # as evenly as can be
    limited = MixOptions([1, 1], by="utterances", max_hours=0.11)
    assert [len(t) for t in choose([LONG, SHORT], limited)] == [10, 10]


def test_hours_alone_are_of_all_sources_and_grow_by_adding():
    half, more = (choose([LONG, SHORT], MixOptions(max_hours=h)) for h in (0.5, 0.9))
    for part, larger in zip(half, more, strict=True):
        assert part.keys() < larger.keys()
    assert 0.48 < sum(map(hours, (LONG, SHORT), half)) <= 0.5
    other = choose([LONG, SHORT], MixOptions(max_hours=0.5, seed=1))
    assert other != half
    assert choose([SHORT], MixOptions(max_hours=9)) == [dict.fromkeys(SHORT, 1)]


def test_sets_of_more_hours_hold_those_of_fewer():
    lengths = np.random.default_rng(0).integers(HOUR // 3000, HOUR // 100, 800)
    source = {f"u-{i}": int(n) for i, n in enumerate(lengths)}
    before: set[str] = set()
    for limit in (0.5, 0.51, 1.0, 1.01, 2.0):
        [taken] = choose([source], MixOptions(max_hours=limit))
        assert before < taken.keys()
        assert limit - 0.01 <= hours(source, taken) <= limit
        before = set(taken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": [1.0, -1.0]}, "give numbers above 0"),
        ({"shares": [0.0, 0.0]}, "give numbers above 0"),
        ({"by": "days"}, "by hours or utterances, not by 'days'"),
        ({"max_hours": 0.0}, "give more than 0"),
        ({"replacement": True}, "repetition is for shares"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(DataDirError, match=message):
        MixOptions(**options)


def test_sources_that_cannot_be_mixed():
    with pytest.raises(DataDirError, match="1 shares are given for 2 sources"):
        choose([LONG, SHORT], MixOptions([1.0]))
    with pytest.raises(DataDirError, match="source 2 has a share, but no utterance"):
        choose([LONG, {}], MixOptions([1.0, 1.0]))
    with pytest.raises(DataDirError, match="less than an utterance"):
        choose([LONG, SHORT], MixOptions(max_hours=1e-6))
