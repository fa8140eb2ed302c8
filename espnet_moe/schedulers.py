"""Linear warm-up and linear decay, which ESPnet does not have, as an ESPnet scheduler."""

from typing import Any

import torch
from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler
from torch.optim.lr_scheduler import LRScheduler

from espnet_moe.config import ConfigError


class LinearWarmupDecay(LRScheduler, AbsBatchStepScheduler):
    """Learning rate from 0 to its peak in ``warmup_steps``, then down to 0 at ``total_steps``.

    Args:
        optimizer: Its learning rates are the peaks.
        warmup_steps: Optimiser steps of the rise; 0 starts at the peak.
        total_steps: Optimiser steps in all.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup_steps: int = 500,
        total_steps: int = 5000,
        last_epoch: int = -1,
    ) -> None:
        if not 0 <= warmup_steps < total_steps:
            raise ConfigError(
                f"scheduler_conf: warmup_steps {warmup_steps} is not in 0..total_steps - 1 "
                f"(total_steps {total_steps})"
            )
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Share of the peak before optimiser step ``step`` (the first is 0)."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return max(0.0, (self.total_steps - step) / (self.total_steps - self.warmup_steps))

    def get_lr(self) -> list[Any]:
        """Learning rate of each parameter group."""
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]
