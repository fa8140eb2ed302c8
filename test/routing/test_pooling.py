"""Pooling against numpy, row by row, whatever stands in the padding."""

import numpy as np
import pytest
import torch

from espnet_moe.errors import UserError
from espnet_moe.routing.pooling import frames_of, hold_last, pool, valid_frames


@pytest.mark.parametrize("padding", [0.0, 1e4, float("inf"), float("nan")])
@pytest.mark.parametrize("kind", ["mean", "mean_std"])
def test_pooling_is_numpys_over_the_valid_frames(kind: str, padding: float) -> None:
    draw = np.random.default_rng(0)
    frames = draw.normal(3.0, 2.0, (4, 11, 6)).astype(np.float32)
    lengths = [11, 7, 1, 3]
    padded = torch.from_numpy(frames.copy())
    for row, n in zip(padded, lengths):
        row[n:] = padding
    found = pool(padded, torch.tensor(lengths), kind)
    for row, n, frame in zip(found.numpy(), lengths, frames):
        expected = frame[:n].mean(0)
        if kind == "mean_std":
            std = np.maximum(frame[:n].std(0), 1e-5)
            expected = np.concatenate([expected, std])
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_is_summed_in_single() -> None:
    frames = torch.full((1, 4000, 2), 1.0, dtype=torch.bfloat16)
    found = pool(frames, torch.tensor([4000]), "mean_std")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0, :2], torch.ones(2))


def test_an_empty_row_gives_zero_and_finite_gradients() -> None:
    frames = torch.ones(1, 3, 2, requires_grad=True)
    found = pool(frames, torch.tensor([0]), "mean_std")
    found.sum().backward()
    assert found[0, :2].tolist() == [0, 0]
    assert frames.grad is not None
    assert bool(frames.grad.isfinite().all())


def test_frames_and_masks() -> None:
    assert frames_of(torch.tensor([1, 320, 321, 16000])).tolist() == [1, 1, 2, 50]
    assert valid_frames(torch.tensor([0, 2]), 3).int().tolist() == [[0, 0, 0], [1, 1, 0]]


def test_the_last_frame_is_held() -> None:
    values = torch.arange(12.0).view(2, 6, 1)
    held = hold_last(values, torch.tensor([3, 0]))[..., 0]
    assert held.tolist() == [[0, 1, 2, 2, 2, 2], [6] * 6]


def test_unknown_pooling() -> None:
    with pytest.raises(UserError, match="pooling 'max' is unknown: choose one of mean, mean_std"):
        pool(torch.ones(1, 2, 3), torch.tensor([2]), "max")
