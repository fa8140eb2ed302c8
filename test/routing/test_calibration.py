"""Calibration: found where it is known, better posteriors, and always a number."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from espnet_moe.routing.calibration import DEVIATION, fit_calibration


def draw(temperature: float, bias: list[float], rows: int = 20000):
    """Logits that ``/ temperature + bias`` makes honest, with targets drawn so."""
    generator = torch.Generator().manual_seed(0)
    honest = 1.5 * torch.randn(rows, len(bias), generator=generator)
    targets = torch.multinomial(honest.softmax(1), 1, generator=generator)[:, 0]
    return (honest - torch.tensor(bias)) * temperature, targets


def calibration_error(posteriors: torch.Tensor, targets: torch.Tensor) -> float:
    confidence, decided = posteriors.max(1)
    total = 0.0
    for b in range(10):
        inside = (confidence > b / 10) & (confidence <= (b + 1) / 10)
        if inside.any():
            right = (decided == targets)[inside].double().mean()
            total += float(inside.double().mean() * (right - confidence[inside].mean()).abs())
    return total


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_finds_what_was_done_to_honest_logits(temperature: float) -> None:
    logits, targets = draw(temperature, [0.3, -0.1, 0.1, -0.3])
    found = fit_calibration(logits, targets)
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.bias.tolist() == pytest.approx([0.3, -0.1, 0.1, -0.3], abs=0.06)
    before, after = logits.softmax(1), found(logits).softmax(1)
    assert calibration_error(after, targets) < 0.02
    assert calibration_error(after, targets) < calibration_error(before, targets)
    right = (after.argmax(1) == targets).sum() - (before.argmax(1) == targets).sum()
    assert right > 100


def test_the_least_loss_against_another_search() -> None:
    """Nelder and Mead, with no gradient, on the loss as the docstring has it."""
    logits, targets = draw(2.0, [0.5, 0.0, -0.5], rows=90)
    x, y = logits.double().numpy(), targets.numpy()

    def loss(values: np.ndarray) -> float:
        bias = values[1:] - values[1:].mean()
        scaled = x / values[0] + bias
        log = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
        of_classes = [-log[y == c, c].mean() for c in range(3)]
        prior = [bias[c] ** 2 / (2 * DEVIATION**2) / (y == c).sum() for c in range(3)]
        return float(np.mean(of_classes) + np.mean(prior))

    wanted = minimize(loss, [1.0, 0, 0, 0], method="Nelder-Mead", options={"maxiter": 20000})
    found = fit_calibration(logits, targets)
    own = loss(np.array([found.temperature, *found.bias.tolist()]))
    assert own <= wanted.fun + 1e-7
    assert found.bias.sum().item() == pytest.approx(0, abs=1e-6)


def test_a_class_counts_alike_however_frequent() -> None:
    logits, targets = draw(1.5, [0.2, 0.0, -0.2], rows=300)
    again = torch.cat([torch.arange(300), *[torch.nonzero(targets == 1)[:, 0]] * 9])
    once, often = fit_calibration(logits, targets), fit_calibration(logits[again], targets[again])
    assert often.temperature == pytest.approx(once.temperature, rel=0.02)
    torch.testing.assert_close(often.bias, once.bias, atol=0.03, rtol=0)


def test_frames_count_as_their_utterance() -> None:
    logits, targets = draw(1.5, [0.2, 0.0, -0.2], rows=60)
    frames = torch.arange(60) % 7 + 1
    whole = fit_calibration(logits, targets)
    found = fit_calibration(
        logits.repeat_interleave(frames, 0),
        targets.repeat_interleave(frames),
        (1 / frames).repeat_interleave(frames),
    )
    assert found.temperature == pytest.approx(whole.temperature, rel=1e-3)
    torch.testing.assert_close(found.bias, whole.bias, atol=1e-3, rtol=0)


def test_a_class_that_is_not_there_is_left_alone() -> None:
    logits, targets = draw(1.0, [0.4, -0.4, 0.0])
    known = targets != 2
    found = fit_calibration(logits[known], targets[known])
    assert found.bias[2] == 0 and found.bias.sum().item() == pytest.approx(0, abs=1e-6)


def test_few_utterances_move_little() -> None:
    """What three mistakes of forty say is believed less than what seventy-five of a thousand do."""
    targets = torch.arange(40) % 2
    logits = 4.0 * (2.0 * torch.nn.functional.one_hot(targets, 2) - 1)
    logits[[0, 2, 4]] = -logits[[0, 2, 4]]
    few = fit_calibration(logits, targets).bias[1]
    many = fit_calibration(logits.repeat(25, 1), targets.repeat(25)).bias[1]
    assert 0 > few > 0.5 * many


def test_one_utterance_of_a_class_moves_it_little() -> None:
    """The only one of the eighth class is decided wrong."""
    targets = torch.arange(280) % 7
    logits = 4.0 * torch.nn.functional.one_hot(targets, 8)
    alone = torch.tensor([[4.0, 0, 0, 0, 0, 0, 0, 0]])
    found = fit_calibration(torch.cat([logits, alone]), torch.cat([targets, torch.tensor([7])]))
    assert 0 < found.bias[7] < 0.4


def test_nothing_is_lost_where_nothing_is_to_be_found() -> None:
    """Honest logits: a small set's biases are noise, and must cost next to no accuracy."""
    logits, targets = draw(1.0, [0.0] * 4)
    lost = []
    for i in range(12):
        rows = slice(40 * i, 40 * (i + 1))
        found = fit_calibration(logits[rows], targets[rows])(logits)
        right, before = (x.argmax(1) == targets for x in (found, logits))
        lost.append(before.double().mean() - right.double().mean())
    assert sum(lost) / len(lost) < 0.008


def test_ends_are_kept() -> None:
    logits = torch.tensor([[0.3, 0.0], [0.0, 0.3]])
    coldest = fit_calibration(logits, torch.tensor([0, 1]))
    hottest = fit_calibration(logits, torch.tensor([1, 0]))
    assert coldest.temperature == pytest.approx(0.05, rel=1e-6)
    assert hottest.temperature == pytest.approx(20.0, rel=1e-6)


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
        found = fit_calibration(logits, targets)
        assert found.temperature == 1.0 and found.bias.abs().max() < 1e-6
    ruled_out = torch.tensor([[2.0, 0.0, -inf], [0.0, 2.0, -inf], [2.0, 0.0, -inf]])
    targets = torch.tensor([0, 1, 1])
    expected = fit_calibration(ruled_out[:, :2], targets)
    found = fit_calibration(ruled_out, targets)
    assert 0.05 < expected.temperature < 20
    assert found.temperature == pytest.approx(expected.temperature)
    assert found.bias[:2].tolist() == pytest.approx(expected.bias.tolist(), abs=1e-5)
