"""Smoothing against brute force and scipy."""

import itertools

import numpy as np
import pytest
import scipy.ndimage
import torch

from espnet_moe.errors import UserError
from espnet_moe.routing.smoothing import SmoothingOptions, median_filter, segments, smooth, viterbi


def brute_force(log_probs: np.ndarray, penalty: float) -> float:
    frames, classes = log_probs.shape
    return max(
        score(log_probs, path, penalty) for path in itertools.product(range(classes), repeat=frames)
    )


def score(log_probs: np.ndarray, path: tuple[int, ...], penalty: float) -> float:
    switches = sum(a != b for a, b in itertools.pairwise(path))
    return sum(log_probs[t, c] for t, c in enumerate(path)) - penalty * switches


@pytest.mark.parametrize("penalty", [0.0, 0.7, 3.0])
def test_viterbi_is_the_best_path(penalty: float) -> None:
    draw = np.random.default_rng(0)
    for _ in range(8):
        log = np.log(draw.dirichlet(np.ones(3), 6))
        path = viterbi(torch.from_numpy(log), penalty)
        assert score(log, tuple(path.tolist()), penalty) == pytest.approx(brute_force(log, penalty))
    if penalty == 0:
        assert path.tolist() == log.argmax(1).tolist()


@pytest.mark.parametrize("window", [1, 2, 5, 9, 31])
def test_median_is_scipys(window: int) -> None:
    labels = np.random.default_rng(1).integers(0, 5, 24)
    expected = scipy.ndimage.median_filter(labels, window + 1 - window % 2, mode="nearest")
    assert median_filter(torch.from_numpy(labels), window).tolist() == expected.tolist()


@pytest.mark.parametrize("method", ["none", "median", "viterbi"])
def test_a_batch_is_its_rows(method: str) -> None:
    draw = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(4, 60, 3, generator=draw)
    logits[:, :, 1] -= 2
    lengths = torch.tensor([60, 17, 1, 42])
    options = SmoothingOptions(method, window=0.18, switch_penalty=2.0)
    found = smooth(logits, lengths, options)
    for row, n, labels in zip(logits, lengths.tolist(), found):
        posteriors = row[:n].softmax(-1)
        if method == "median":
            tracks = scipy.ndimage.median_filter(posteriors.numpy(), (9, 1), mode="nearest")
            expected = torch.from_numpy(tracks.argmax(1))
        elif method == "viterbi":
            expected = viterbi(posteriors.log(), 2.0)
        else:
            expected = posteriors.argmax(1)
        assert labels[:n].tolist() == expected.tolist()
        assert bool((labels[n:] == labels[n - 1]).all())


@pytest.mark.parametrize("method", ["median", "viterbi"])
def test_a_flicker_goes_and_a_switch_stays(method: str) -> None:
    truth = torch.tensor([2] * 50 + [0] * 50)
    heard = truth.clone()
    heard[20:23] = 0
    heard[70:72] = 1
    logits = 3.0 * torch.eye(3)[heard].unsqueeze(0)
    logits[..., 1] = logits[..., 1].where(heard == 1, torch.tensor(float("-inf")))
    found = smooth(logits, torch.tensor([100]), SmoothingOptions(method))[0]
    assert found.tolist() == truth.tolist()
    assert segments(found, ["hi", "it", "te"]) == [(0.0, 1.0, "te"), (1.0, 2.0, "hi")]


def test_segments_of_little() -> None:
    assert segments(torch.tensor([], dtype=torch.long), ["hi"]) == []
    assert segments(torch.tensor([0, 1, 1, 0]), ["hi", "it"]) == [
        (0.0, 0.02, "hi"),
        (0.02, 0.06, "it"),
        (0.06, 0.08, "hi"),
    ]


def test_wrong_options() -> None:
    with pytest.raises(UserError, match="'mean' is unknown.*window is 0.*switch_penalty is -1"):
        SmoothingOptions("mean", 0, -1)
    with pytest.raises(UserError, match="window is inf s.*resolution is inf s"):
        SmoothingOptions(window=float("inf"), resolution=float("inf"))


def test_coarse_viterbi_changes_at_its_resolution() -> None:
    torch.manual_seed(3)
    logits = torch.randn(2, 53, 3)
    logits[0, 20:, 1] += 6
    lengths = torch.tensor([53, 31])
    options = SmoothingOptions("viterbi", switch_penalty=1.0, resolution=0.1)
    labels = smooth(logits, lengths, options)
    for row, n in zip(range(2), lengths.tolist(), strict=True):
        log = logits[row, :n].log_softmax(-1)
        blocks = torch.stack([part.sum(0) for part in log.split(5)])
        expected = viterbi(blocks, 1.0).repeat_interleave(5)[:n]
        assert torch.equal(labels[row, :n], expected)
