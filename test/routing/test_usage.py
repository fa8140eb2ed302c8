"""Usage of experts: figures by hand, and a collapse that is told once."""

import logging
import math

import pytest
import torch

from espnet_moe.routing import usage
from espnet_moe.routing.usage import UsageMonitor


def test_figures_of_a_batch() -> None:
    monitor = UsageMonitor(("hi", "it", "te"), interval=10)
    stats = monitor.update(torch.tensor([[0.6, 0.4, 0], [0.8, 0.2, 0], [0.1, 0.9, 0], [1, 0, 0]]))
    assert stats["usage_hi"] == pytest.approx(0.75)
    assert stats["usage_it"] == pytest.approx(0.25)
    assert stats["gate_hi"] == pytest.approx(0.625)
    assert stats["gate_te"] == 0
    entropy = -(0.625 * math.log(0.625) + 0.375 * math.log(0.375))
    assert stats["usage_entropy"] == pytest.approx(entropy)
    assert stats["dead_experts"] == 0


def test_collapse_is_told_once_and_taken_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    monitor = UsageMonitor(("hi", "it"), interval=2, patience=3)
    to_hi = torch.tensor([[0.9, 0.1]] * 4)
    for update in range(12):
        monitor.update(to_hi)
        assert monitor.collapsed == (["it"] if update >= 5 else [])
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "expert it has collapsed" in warnings[0]
    assert caplog.text.count("expert usage over 8 rows: hi 100.0 %") == 6
    assert monitor.update(to_hi.flip(1))["dead_experts"] == 1
    monitor.update(to_hi)
    assert monitor.collapsed == []


def test_now_and_then_is_no_collapse() -> None:
    monitor = UsageMonitor(("hi", "it"), interval=1, patience=2)
    for i in range(8):
        monitor.update(torch.eye(2)[[int(i % 2 == 0)] * 3])
    assert monitor.collapsed == []


def test_a_training_that_goes_on_keeps_watching() -> None:
    to_hi = torch.tensor([[0.9, 0.1]] * 4)
    monitor = UsageMonitor(("hi", "it"), interval=3, patience=2)
    for _ in range(5):
        monitor.update(to_hi)
        state = monitor.state_dict()
        monitor = UsageMonitor(("hi", "it"), interval=3, patience=2)
        monitor.load_state_dict(state)
    assert monitor.collapsed == []
    assert monitor.update(to_hi)["dead_experts"] == 1
    assert monitor.collapsed == ["it"]


def test_processes_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One has sent all to hi, this one all to it: together both are used alike."""
    other = torch.tensor([2.0, 0.0, 2.0, 0.0, 2.0], dtype=torch.double)
    monkeypatch.setattr(usage, "global_sum", lambda own: own + other)
    stats = UsageMonitor(("hi", "it"), interval=9).update(torch.tensor([[0.0, 1.0]] * 2))
    assert stats["usage_hi"] == stats["gate_it"] == 0.5
    assert stats["usage_entropy"] == pytest.approx(math.log(2))
