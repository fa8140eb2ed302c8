"""Gates: how much of which expert each row or frame gets, and how that reaches the layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from espnet_moe.errors import UserError


@dataclass(frozen=True)
class Gates:
    """The weights of the experts for one batch.

    Attributes:
        weights: ``(batch, experts)``, or ``(batch, frames, experts)`` for frame-level routing.
        hard: ``(batch,)`` expert index per row where every row uses exactly one expert with weight
            one; lets the layers gather rows instead of computing every expert.
        uniform: The one expert that all rows use, where there is one: a slice, no copy.
        off: Expert layers in which no expert acts, whatever the weights say; see
            :meth:`espnet_moe.experts.expert_set.ExpertSet.without`.
        made: What layers have made of the weights and keep for the other layers, one batch
            long; gates that are made of these begin with nothing.
    """

    weights: torch.Tensor
    hard: torch.Tensor | None = None
    uniform: int | None = None
    off: frozenset[torch.nn.Module] = frozenset()
    made: dict[Any, torch.Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, weights: torch.Tensor) -> "Gates":
        """Gates from weights ``(batch, experts)`` or ``(batch, frames, experts)``."""
        if weights.dim() not in (2, 3):
            raise UserError(
                "gates have the shape (batch, experts) or (batch, frames, experts), "
                f"but these have {tuple(weights.shape)}"
            )
        return cls(weights)

    @classmethod
    def one_hot(cls, experts: list[int], num_experts: int, device: torch.device) -> "Gates":
        """Gates that give row ``i`` the expert ``experts[i]`` and nothing else."""
        wrong = sorted({e for e in experts if not 0 <= e < num_experts})
        if wrong:
            raise UserError(f"expert indices {wrong} are not in 0..{num_experts - 1}")
        hard = torch.tensor(experts, dtype=torch.long, device=device)
        weights = torch.zeros(len(experts), num_experts, device=device)
        weights.scatter_(1, hard.unsqueeze(1), 1.0)
        uniform = experts[0] if len(set(experts)) == 1 else None
        return cls(weights, hard, uniform)

    def select(self, rows: torch.Tensor) -> "Gates":
        """The gates of a selection of rows: ``rows (n,)`` indices, repeats allowed (beams)."""
        hard = None if self.hard is None else self.hard[rows]
        return Gates(self.weights[rows], hard, self.uniform, self.off)


_CURRENT: ContextVar[Gates | None] = ContextVar("espnet_moe_gates", default=None)


def current_gates() -> Gates | None:
    """The gates in force here, or ``None`` where no expert acts."""
    return _CURRENT.get()


@contextmanager
def use_gates(gates: Gates | None) -> Iterator[None]:
    """Put gates in force for all expert layers called inside; ``None`` switches experts off.

    A context variable, so that threads do not see each other's gates, and a plain value, so that
    gradient checkpointing can put the same gates in force again when it recomputes a layer.
    """
    token = _CURRENT.set(gates)
    try:
        yield
    finally:
        _CURRENT.reset(token)
