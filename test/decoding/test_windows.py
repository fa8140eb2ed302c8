"""Cuts of recordings: whole coverage, the length limit, and quiet places."""

import itertools

import numpy as np
import pytest

from espnet_moe.decoding.windows import energies, merge_short, pieces, quietest, stretches, windows
from espnet_moe.errors import UserError

RATE = 16000


def noise(seconds, pauses=(), seed=0):
    """White noise with digital silence at the given (start, end) seconds."""
    x = 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * RATE)).astype(np.float32)
    for start, end in pauses:
        x[int(start * RATE) : int(end * RATE)] = 0
    return x


def covers(spans, speech):
    assert spans[0][0] == 0 and spans[-1][1] == len(speech)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    assert all(b > a for a, b, *_ in spans)


def test_windows_end_in_pauses():
    speech = noise(70, [(21.0, 21.4), (26, 26.1), (44.2, 44.7), (50, 50.06)])
    found = windows(speech, 29.5)
    covers(found, speech)
    ends = [end / RATE for _, end in found[:-1]]
    assert len(found) == 3
    # 26-26.1 is as quiet as 21-21.4 at its centre: of two the later one is taken.
    assert 26.0 <= ends[0] <= 26.1 and 44.2 <= ends[1] <= 44.7


def test_windows_with_no_room_to_cut():
    with pytest.raises(UserError, match=r"windows of 0\.5 s are too short.*window_margin"):
        windows(noise(11), 0.5)


@pytest.mark.parametrize("seconds", [29.49, 29.51, 30.2, 59.0, 90.3, 200.0])
@pytest.mark.parametrize("kind", ["noise", "silence"])
def test_windows_cover_any_recording(seconds, kind):
    speech = noise(seconds, seed=3) * (kind == "noise")
    found = windows(speech, 29.5)
    covers(found, speech)
    lengths = [(b - a) / RATE for a, b in found]
    assert max(lengths) <= 29.5 and min(lengths) >= 1.0
    assert len(found) <= 2 * seconds / 29.5 + 1
    if kind == "silence":  # nowhere quieter than elsewhere: as few windows as can be
        assert len(found) == int(np.ceil(seconds / 29.5))


def test_energies_against_a_plain_mean():
    speech = noise(1.003, seed=1)
    got = energies(speech)
    padded = np.concatenate([speech, np.zeros(-len(speech) % 160)]).astype(np.float64)
    assert len(got) == len(padded) // 160
    for i in (0, 3, 50, len(got) - 1):
        near = padded[max(i - 5, 0) * 160 : (i + 5) * 160]
        assert got[i] == pytest.approx((near**2).mean())


def test_quietest_of_a_range_with_no_whole_hop():
    assert quietest(np.ones(10), 161, 170, 165) == 165


def test_pieces_snap_to_pauses_within_reach():
    speech = noise(4.0, [(1.15, 1.3), (2.5, 2.7)])
    segments = [(0.0, 1.0, "hi"), (1.0, 3.1, "it"), (3.1, 4.0, "hi")]
    found = pieces(speech, segments, shortest=0.4, radius=0.3)
    covers(found, speech)
    assert [label for *_, label in found] == ["hi", "it", "hi"]
    assert 1.15 <= found[0][1] / RATE <= 1.3
    # The second pause is 0.4 s away: out of reach.
    assert abs(found[1][1] / RATE - 3.1) <= 0.3
    exact = pieces(speech, segments, shortest=0.4, radius=0.0)
    assert [end for _, end, _ in exact] == [16000, 49600, 64000]


def test_short_segments_join_their_longer_neighbour():
    segments = [(0, 0.2, "te"), (0.2, 1.0, "hi"), (1.0, 1.1, "it"), (1.1, 3.0, "pa")]
    assert merge_short(segments, 0.4) == [(0, 1.0, "hi"), (1.0, 3.0, "pa")]
    # Neighbours that become alike are one.
    flicker = [(0, 1, "hi"), (1, 1.1, "it"), (1.1, 2, "hi")]
    assert merge_short(flicker, 0.4) == [(0, 2, "hi")]
    assert merge_short([(0, 0.1, "hi")], 0.4) == [(0, 0.1, "hi")]


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_segments_cover_the_utterance(seed):
    draw = np.random.default_rng(seed)
    seconds = draw.uniform(0.1, 8)
    speech = noise(seconds, seed=seed)
    changes = np.sort(draw.uniform(0, seconds, draw.integers(0, 12)))
    bounds = [0.0, *changes.tolist(), seconds + 0.03]  # the last frame reaches behind the end
    labels = draw.choice(["hi", "it", "pa"], len(bounds) - 1).tolist()
    found = pieces(speech, list(zip(bounds[:-1], bounds[1:], labels)))
    covers(found, speech)
    if len(found) > 1:
        assert min(b - a for a, b, _ in found) >= 0.35 * RATE
        assert all(a[2] != b[2] for a, b in itertools.pairwise(found))


def test_stretches_end_at_pauses():
    draw = np.random.default_rng(0)

    def loud(seconds):
        return draw.standard_normal(int(seconds * 16000))

    quiet = 0.02 * loud(0.3)
    speech = np.concatenate([loud(2.0), quiet, loud(1.5), quiet, loud(0.1), quiet, loud(2.0)])
    spans = stretches(speech.astype(np.float32), shortest=0.8, depth=12.0)
    assert spans[0][0] == 0 and spans[-1][1] == len(speech)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    cuts = [b / 16000 for _, b in spans[:-1]]
    # Two of the three pauses: the middle one and the last are too near to each other.
    assert len(cuts) == 2
    assert 2.0 <= cuts[0] <= 2.3
    assert 3.8 <= cuts[1] <= 4.1 or 4.2 <= cuts[1] <= 4.5
    assert stretches(np.zeros(500, np.float32)) == [(0, 500)]
    # However short stretches may be, none is empty: not at a quiet beginning either.
    spans = stretches(np.concatenate([quiet, speech, quiet]).astype(np.float32), shortest=0.0)
    assert all(start < end for start, end in spans)
    assert stretches(loud(3).astype(np.float32)) == [(0, 48000)]
