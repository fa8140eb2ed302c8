"""Pieces of speech: where they come from, and labels that fit the encoder's frames."""

from collections.abc import Callable
from typing import Any

import torch

from espnet_moe.routing.augment import crop, splice
from espnet_moe.routing.losses import IGNORE
from espnet_moe.routing.pooling import frames_of


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramps(*seconds: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that count their samples, each in its own hundred thousand."""
    lengths = torch.tensor([int(s * 16000) for s in seconds])
    speech = torch.zeros(len(lengths), int(lengths.max()), dtype=torch.float64)
    for i, n in enumerate(lengths.tolist()):
        speech[i, :n] = 1e6 * (i + 1) + torch.arange(n)
    return speech, lengths


def test_crops_are_pieces_of_their_rows() -> None:
    speech, lengths = ramps(6.0, 0.4, 2.0, 9.0)
    starts = set()
    for seed in range(30):
        pieces, kept = crop(speech, lengths, (1.0, 3.0), seeded(seed))
        assert pieces.shape == (4, int(kept.max()))
        assert kept[1] == 6400  # shorter than the shortest piece: whole
        for i, n in enumerate(kept.tolist()):
            assert min(16000, int(lengths[i])) <= n <= min(48000, int(lengths[i]))
            first = pieces[i, 0]
            assert torch.equal(pieces[i, :n], first + torch.arange(n))
            assert 1e6 * (i + 1) <= first <= 1e6 * (i + 1) + int(lengths[i]) - n
            assert not pieces[i, n:].any()
        starts.add(float(pieces[3, 0]))
    assert len(starts) == 30
    again = crop(speech, lengths, (1.0, 3.0), seeded(29))
    assert torch.equal(again[0], pieces)


def test_splices_say_what_is_heard() -> None:
    speech, lengths = ramps(3.0, 0.1, 2.0)
    labels = torch.tensor([7, 8, 9])
    seen = set()
    for seed in range(20):
        joined, sizes, found = splice(speech, lengths, labels, (0.3, 1.0), 1.0, seeded(seed))
        assert found.shape == (3, int(frames_of(sizes).max()))
        for row, n, of_frames, own in zip(joined, sizes.tolist(), found, labels):
            count = int(frames_of(torch.tensor([n])))
            assert of_frames[0] == own
            assert bool((of_frames[count:] == IGNORE).all())
            for f in range(count):
                middle = f * 320 + 160
                # Away from the cross-fades, a sample tells the row that it is of.
                inside = row[max(middle - 330, 0) : min(middle + 330, n)]
                sources = (inside // 1e6).unique()
                if len(sources) == 1 and bool((inside.diff() == 1).all()) and middle < n:
                    assert of_frames[f] == labels[int(sources[0]) - 1]
            seen.add(len(of_frames[:count].unique_consecutive()))
    assert seen >= {2, 3}


def test_a_cross_fade_joins_smoothly() -> None:
    speech = torch.stack([torch.zeros(16000), torch.ones(16000)])
    lengths = torch.tensor([16000, 16000])
    for seed in range(10):
        joined, sizes, _ = splice(
            speech, lengths, torch.tensor([0, 1]), (0.5, 0.5), 1.0, seeded(seed), cross_fade=0.1
        )
        assert float(joined[:, : int(sizes.min())].diff().abs().max()) < 1.1 / 1600
        pieces = 2 if int(sizes[0]) == 16000 - 1600 else 3
        assert int(sizes[0]) == pieces * 8000 - (pieces - 1) * 1600


def test_a_long_fade_stays_inside_a_short_piece() -> None:
    speech, lengths = torch.zeros(3, 48000), torch.tensor([48000, 2000, 48000])
    labels, middles = torch.tensor([0, 1, 2]), 0
    for seed in range(60):
        _, sizes, found = splice(
            speech, lengths, labels, (0.5, 3.0), 1.0, seeded(seed), cross_fade=1.0
        )
        heard = found[0, : int(frames_of(sizes)[0])].unique_consecutive(return_counts=True)
        order, counts = (values.tolist() for values in heard)
        middles += len(order) == 3 and order[1] == 1
        # Half of the short piece's 2000 samples at the least, wherever it stands.
        assert all(n >= 3 for label, n in zip(order, counts, strict=True) if label == 1)
        assert len(order) <= 3
    assert middles > 3


def test_share_none_leaves_all_as_it_is() -> None:
    speech, lengths = ramps(0.5, 0.31)
    joined, sizes, found = splice(speech, lengths, torch.tensor([4, 5]), (0.1, 0.2), 0.0, seeded(0))
    assert torch.equal(joined, speech)
    assert torch.equal(sizes, lengths)
    assert found.tolist() == [[4] * 25, [5] * 16 + [IGNORE] * 9]


def test_labels_have_the_encoders_frames(
    backbone: Any, batch_of: Callable[..., tuple[torch.Tensor, torch.Tensor]]
) -> None:
    speech, lengths = batch_of(0.9, 0.4013, 0.62, 0.7351)
    labels = torch.tensor([0, 1, 2, 3])
    for seed in range(4):
        joined, sizes, found = splice(speech, lengths, labels, (0.2, 0.5), 0.7, seeded(seed))
        with torch.no_grad():
            encoded = backbone.encode_lower(joined, sizes, 0)
        assert found.shape == encoded.hidden.shape[:2]
        assert (found != IGNORE).sum(1).tolist() == encoded.lengths.tolist()
