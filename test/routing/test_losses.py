"""Losses against numpy, and two processes against one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from espnet_moe.errors import UserError
from espnet_moe.routing.losses import (
    IGNORE,
    balance_loss,
    cross_entropy,
    entropy_loss,
    z_loss,
)

LENGTHS = [7, 1, 4, 6, 3]


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def draw_logits(frame_level: bool) -> np.ndarray:
    shape = (5, 7, 4) if frame_level else (5, 4)
    return np.random.default_rng(0).normal(0, 2, shape)


def row_means(x: np.ndarray, frame_level: bool) -> np.ndarray:
    if not frame_level:
        return x
    return np.stack([row[:n].mean(0) for row, n in zip(x, LENGTHS)])


@pytest.mark.parametrize("frame_level", [False, True])
def test_auxiliary_losses_are_numpys(frame_level: bool) -> None:
    x = draw_logits(frame_level)
    logits, lengths = torch.from_numpy(x), torch.tensor(LENGTHS)
    p = softmax(x)
    z = row_means(np.log(np.exp(x).sum(-1)) ** 2, frame_level).mean()
    entropy = row_means(-(p * np.log(p)).sum(-1), frame_level).mean()
    sent = row_means(np.eye(4)[x.argmax(-1)], frame_level).mean(0)
    balance = 4 * (sent * row_means(p, frame_level).mean(0)).sum()
    assert float(z_loss(logits, lengths)) == pytest.approx(z, rel=1e-5)
    assert float(entropy_loss(logits, lengths)) == pytest.approx(entropy, rel=1e-5)
    assert float(balance_loss(logits, lengths)) == pytest.approx(balance, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_utterances(smoothing: float) -> None:
    x = draw_logits(False)
    log = np.log(softmax(x))
    soft = np.random.default_rng(1).dirichlet(np.ones(4), 5)
    soft[2] = 0  # belongs nowhere
    smooth = soft * (1 - smoothing) + smoothing / 4 * soft.sum(1, keepdims=True)
    weight = np.array([1.0, 0.5, 2.0, 0.0, 1.0])
    expected = (-(smooth * log).sum(1) * weight).sum() / 5
    found = cross_entropy(
        torch.from_numpy(x),
        torch.from_numpy(soft),
        weight=torch.from_numpy(weight).unsqueeze(1),
        smoothing=smoothing,
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)
    labels = torch.tensor([0, 3, 1, 2, 2])
    reference = torch.nn.functional.cross_entropy(
        torch.from_numpy(x), labels, label_smoothing=smoothing
    )
    found = cross_entropy(torch.from_numpy(x), labels, smoothing=smoothing)
    assert float(found) == pytest.approx(float(reference), rel=1e-5)


def test_cross_entropy_of_frames() -> None:
    x = draw_logits(True)
    log = np.log(softmax(x))
    labels = np.random.default_rng(2).integers(0, 4, (5, 7))
    labels[0, 2:5] = IGNORE
    labels[1] = IGNORE  # a row without any label adds zero, and still is a row
    rows = [
        [-log[i, f, labels[i, f]] for f in range(n) if labels[i, f] >= 0]
        for i, n in enumerate(LENGTHS)
    ]
    expected = sum(np.mean(r) for r in rows if r) / 5
    args = torch.from_numpy(x), torch.from_numpy(labels), torch.tensor(LENGTHS)
    assert float(cross_entropy(*args)) == pytest.approx(expected, rel=1e-5)
    soft = torch.from_numpy(np.eye(4)[labels.clip(0)] * (labels >= 0)[..., None])
    assert float(cross_entropy(args[0], soft, args[2])) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="need lengths"):
        cross_entropy(args[0], args[1])


def test_ruled_out_classes_give_finite_values_and_gradients() -> None:
    logits = torch.tensor([[1.0, float("-inf"), 0.0]], requires_grad=True)
    loss = entropy_loss(logits) + z_loss(logits) + cross_entropy(logits, torch.tensor([0]))
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(logits.grad.isfinite().all())


def test_balance_pulls_a_collapsed_router_apart() -> None:
    logits = torch.tensor([[4.0, 0.0, 0.0]]).repeat(6, 1).requires_grad_()
    balance_loss(logits).backward()
    assert bool((logits.grad[:, 0] > 0).all())
    assert bool((logits.grad[:, 1:] < 0).all())
    even = torch.eye(3).repeat(2, 1) * 50
    assert float(balance_loss(even)) == pytest.approx(1.0)


def everything(x: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """All losses of frame-level logits and, for the utterance level, of their first frames."""
    rows = x[:, 0]
    return torch.stack(
        [
            balance_loss(x, lengths),
            balance_loss(rows),
            z_loss(x, lengths),
            z_loss(rows),
            entropy_loss(x, lengths),
            entropy_loss(rows),
            cross_entropy(x, labels, lengths, smoothing=0.1),
            cross_entropy(rows, labels[:, 0]),
        ]
    )


def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(5, 7, 6, generator=draw)
    head = torch.randn(6, 4, generator=draw)
    labels = torch.randint(0, 4, (5, 7), generator=draw)
    return x, head, labels, torch.tensor(LENGTHS)


def values_and_gradients(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
    x, head, labels, lengths = problem()
    head.requires_grad_()
    losses = everything(x[rows] @ head, labels[rows], lengths[rows])
    gradients = [torch.autograd.grad(loss, head, retain_graph=True)[0] for loss in losses]
    return losses.detach(), torch.stack(gradients)


def run_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    rows = slice(0, 2) if rank == 0 else slice(2, 5)
    share = (rows.stop - rows.start) / 5
    for name, local in zip(("values", "gradients"), values_and_gradients(rows)):
        local = share * local
        torch.distributed.all_reduce(local)
        if rank == 0:
            torch.save(local, f"{folder}/{name}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in (0, 1)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for name, expected in zip(("values", "gradients"), values_and_gradients(slice(0, 5))):
        found = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


if __name__ == "__main__":
    run_process(int(sys.argv[1]), sys.argv[2])
