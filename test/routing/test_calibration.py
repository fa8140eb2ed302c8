"""Temperature: found where it is known, better calibrated, and always a number."""

import math

import pytest
import torch

from espnet_moe.routing.calibration import fit_temperature


def calibration_error(posteriors: torch.Tensor, targets: torch.Tensor) -> float:
    confidence, decided = posteriors.max(1)
    total = 0.0
    for b in range(10):
        inside = (confidence > b / 10) & (confidence <= (b + 1) / 10)
        if inside.any():
            right = (decided == targets)[inside].double().mean()
            total += float(inside.double().mean() * (right - confidence[inside].mean()).abs())
    return total


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_finds_the_temperature_and_lowers_the_calibration_error(true: float) -> None:
    draw = torch.Generator().manual_seed(0)
    honest = 1.5 * torch.randn(20000, 4, generator=draw)
    targets = torch.multinomial(honest.softmax(1), 1, generator=draw)[:, 0]
    logits = true * honest
    found = fit_temperature(logits, targets)
    assert found == pytest.approx(true, rel=0.05)
    after = calibration_error((logits / found).softmax(1), targets)
    assert after < 0.02
    if true != 1.0:
        assert after < 0.3 * calibration_error(logits.softmax(1), targets)
    soft = torch.nn.functional.one_hot(targets, 4)
    assert fit_temperature(logits, soft) == pytest.approx(found)


def test_ends_are_kept() -> None:
    logits = torch.tensor([[0.3, 0.0], [0.0, 0.3]])
    assert fit_temperature(logits, torch.tensor([0, 1])) == pytest.approx(0.05, rel=1e-6)
    assert fit_temperature(logits, torch.tensor([1, 0])) == pytest.approx(20.0, rel=1e-6)


def test_always_a_number() -> None:
    inf, nan = math.inf, math.nan
    for logits, targets in (
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)),
        (torch.randn(3, 3), torch.tensor([-1, -100, -1])),
        (torch.zeros(2, 3), torch.tensor([0, 1])),
        (torch.tensor([[nan, 0.0], [0.0, inf]]), torch.tensor([0, 1])),
        (torch.tensor([[-inf, 0.0]]), torch.tensor([0])),
        (torch.randn(2, 1), torch.tensor([0, 0])),
    ):
        assert fit_temperature(logits, targets) == 1.0
    ruled_out = torch.tensor([[2.0, 0.0, -inf], [0.0, 2.0, -inf], [2.0, 0.0, -inf]])
    targets = torch.tensor([0, 1, 1])
    expected = fit_temperature(ruled_out[:, :2], targets)
    assert 0.05 < expected < 20
    assert fit_temperature(ruled_out, targets) == pytest.approx(expected)
