"""How much each expert is used in training, and a warning where one falls out of use."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from espnet_moe.routing.losses import global_sum


class UsageMonitor:
    """Counts rows by expert, reports every interval, and watches for collapse.

    An expert has collapsed that got less than ``share`` of its fair part of the rows, one in as
    many as there are experts, for ``patience`` intervals on end. In distributed training all
    processes are counted together.

    Args:
        experts: Names of the experts in the order of the gates.
        interval: Updates between two reports.
        share: Of the fair part, below which an interval counts against an expert.
        patience: Intervals.
    """

    def __init__(
        self, experts: Sequence[str], interval: int, share: float = 0.01, patience: int = 3
    ) -> None:
        self.experts = tuple(experts)
        self.interval = interval
        self.share = share
        self.patience = patience
        self.collapsed: list[str] = []
        self._idle = [0] * len(self.experts)  # intervals on end below the share
        self._updates = 0
        self._sums = [0.0] * (2 * len(self.experts) + 1)  # rows and gates by expert, and all rows

    def update(self, weights: torch.Tensor) -> dict[str, float]:
        """Count a batch.

        Args:
            weights: Gates ``(batch, experts)``.

        Returns:
            Of this batch in all processes: ``usage_<expert>`` (fraction of the rows whose greatest
            gate it is), ``gate_<expert>`` (mean gate), ``usage_entropy`` (of the mean gates, in
            nats) and ``dead_experts`` (how many have collapsed by now).
        """
        weights = weights.detach().double()
        rows, experts = weights.shape
        counts = torch.bincount(weights.argmax(-1), minlength=experts).to(weights)
        local = torch.cat([counts, weights.sum(0), weights.new_tensor([rows])])
        sums = global_sum(local).tolist()
        self._sums = [old + new for old, new in zip(self._sums, sums, strict=True)]
        self._updates += 1
        if self._updates % self.interval == 0:
            self._report(self._sums)
            self._sums = [0.0] * len(sums)
        means = [x / max(sums[-1], 1.0) for x in sums[:-1]]
        usage, gates = means[:experts], means[experts:]
        stats = {f"usage_{e}": u for e, u in zip(self.experts, usage, strict=True)}
        stats |= {f"gate_{e}": g for e, g in zip(self.experts, gates, strict=True)}
        stats["usage_entropy"] = -sum(g * math.log(g) for g in gates if g > 0)
        stats["dead_experts"] = float(len(self.collapsed))
        return stats

    def state_dict(self) -> dict[str, Any]:
        """What was counted so far: lists and numbers."""
        return {
            "collapsed": list(self.collapsed),
            "idle": list(self._idle),
            "updates": self._updates,
            "sums": list(self._sums),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`state_dict` gave."""
        self.collapsed, self._idle = list(state["collapsed"]), list(state["idle"])
        self._updates, self._sums = int(state["updates"]), list(state["sums"])

    def _report(self, sums: list[float]) -> None:
        """Log the usage of an interval, and judge by it."""
        experts, rows = len(self.experts), max(sums[-1], 1.0)
        usage = [n / rows for n in sums[:experts]]
        gates = [g / rows for g in sums[experts:-1]]
        logging.info(
            "expert usage over %d rows: %s",
            rows,
            ", ".join(
                f"{e} {100 * u:.1f} % (mean gate {g:.3f})"
                for e, u, g in zip(self.experts, usage, gates, strict=True)
            ),
        )
        for i, name in enumerate(self.experts):
            self._idle[i] = self._idle[i] + 1 if usage[i] < self.share / experts else 0
            if self._idle[i] == self.patience:
                self.collapsed.append(name)
                logging.warning(
                    "expert %s has collapsed: it got under %g %% of its fair share of the rows for "
                    "%d intervals of %d updates; a greater weight of the balance loss, or noise on "
                    "the logits, brings an expert back",
                    name,
                    100 * self.share,
                    self.patience,
                    self.interval,
                )
            elif self._idle[i] == 0 and name in self.collapsed:
                self.collapsed.remove(name)
                logging.info("expert %s is in use again", name)
