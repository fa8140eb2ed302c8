"""The fused LoRA layer: all experts of one linear layer in two matrix products."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from espnet_moe.experts.gates import Gates, current_gates
from espnet_moe.experts.kinds import KINDS, ExpertLayer, ExpertOptions


@dataclass(frozen=True)
class LoRAOptions(ExpertOptions):
    """Which layers get LoRA experts, and how large.

    Attributes:
        rank: Rank of the updates.
        alpha: Updates are scaled by ``alpha / rank``.
        dropout: On the input of the updates, in training.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0

    def problems(self) -> list[str]:
        """What is wrong with the values, empty where nothing is."""
        wrong = super().problems()
        if not isinstance(self.rank, int) or self.rank < 1:
            wrong.append(f"rank is a positive integer, not {self.rank}")
        if not self.alpha > 0:
            wrong.append(f"alpha is positive, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            wrong.append(f"dropout is in [0, 1), not {self.dropout}")
        return wrong

    @classmethod
    def layer(cls, base: nn.Linear, each: Sequence[Any]) -> ExpertLayer:
        """The fused layer."""
        ranks, alphas = [o.rank for o in each], [o.alpha for o in each]
        return LoRALinear(base, ranks, alphas, each[0].dropout)

    def peft_config(self) -> dict[str, Any]:
        """PEFT's ``LoraConfig``."""
        return {
            **super().peft_config(),
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "bias": "none",
            "fan_in_fan_out": False,
            "use_rslora": False,
            "use_dora": False,
        }


KINDS["lora"] = LoRAOptions


class LoRALinear(ExpertLayer):
    """A frozen linear layer with the low-rank updates of all experts beside it.

    ``y = base(x) + ((dropout(x) Aᵀ) ⊙ gates·scale) Bᵀ`` with ``A (Σr, in)``, ``B (out, Σr)``: the
    rows of ``A`` and the columns of ``B`` belong to the experts one after the other, and every
    expert may have its own rank. With ``B = 0`` or without gates the layer is ``base`` to the bit.
    The base weight is never written.

    Hu et al., "LoRA", arXiv:2106.09685; for mixtures, Wu et al., arXiv:2404.13628.

    Args:
        base: The layer to wrap; kept as it is and frozen.
        ranks: Rank of each expert.
        alphas: Scale numerator of each expert: its update is scaled by ``alpha / rank``.
        dropout: Probability of dropping an input of the update during training.
    """

    def __init__(
        self, base: nn.Linear, ranks: Sequence[int], alphas: Sequence[float], dropout: float = 0.0
    ) -> None:
        super().__init__(base)
        self.ranks = tuple(ranks)
        self.dropout = dropout
        total, device = sum(ranks), base.weight.device
        self.lora_A = nn.Parameter(torch.empty(total, base.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, total, device=device))
        for e in range(len(self.ranks)):
            nn.init.kaiming_uniform_(self.A(e), a=math.sqrt(5))
        scale = [a / r for a, r in zip(alphas, ranks, strict=True) for _ in range(r)]
        owner = [e for e, r in enumerate(ranks) for _ in range(r)]
        self.register_buffer("scale", torch.tensor(scale, device=device), persistent=False)
        self.register_buffer("owner", torch.tensor(owner, device=device), persistent=False)
        self.scale: torch.Tensor
        self.owner: torch.Tensor

    def _span(self, expert: int) -> slice:
        start = sum(self.ranks[:expert])
        return slice(start, start + self.ranks[expert])

    def A(self, expert: int) -> torch.Tensor:  # noqa: N802
        """View of the down projection of an expert, ``(rank, in)``."""
        return self.lora_A.data[self._span(expert)]

    def B(self, expert: int) -> torch.Tensor:  # noqa: N802
        """View of the up projection of an expert, ``(out, rank)``."""
        return self.lora_B.data[:, self._span(expert)]

    def tensors(self, expert: int) -> dict[str, torch.Tensor]:
        """``lora_A (rank, in)`` and ``lora_B (out, rank)``."""
        return {"lora_A": self.A(expert), "lora_B": self.B(expert)}

    @torch.no_grad()
    def merged(self, expert: int) -> nn.Linear:
        """A plain layer that does what the base does with one expert, in single precision.

        ``W + scale · B A``; in half precision the sum would round the update away
        (huggingface/peft issue 2502). The base weight is read, not written.
        """
        span = self._span(expert)
        update = self.B(expert).float() @ self.A(expert).float() * self.scale[span.start]
        bias = None if self.bias is None else self.bias.float().clone()
        return self.plain(self.weight.float() + update, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer and the experts that the gates in force name.

        Args:
            x: ``(batch, frames, in)``.

        Returns:
            ``(batch, frames, out)``.

        Raises:
            ValueError: Where the gates are those of another batch.
        """
        y = self.base(x)
        gates = current_gates()
        if gates is None or self in gates.off:
            return y
        x = F.dropout(x, self.dropout, self.training)
        if gates.uniform is not None:
            return y + self._one(x, gates.uniform)
        if gates.weights.size(0) != x.size(0):
            # Broadcasting would give every row the experts of one.
            raise ValueError(f"gates of {gates.weights.size(0)} rows for a batch of {x.size(0)}")
        many = len(self.ranks) > 8 and x.size(1) > 4 and len(set(self.ranks)) == 1
        if gates.hard is not None and many:
            return y + self._gathered(x, gates.hard)
        return y + self._all(x, gates)

    def _one(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        """One expert for every row: slices of A and B, no copy."""
        span = self._span(expert)
        down = F.linear(x, self.lora_A[span]) * self.scale[span.start]
        return F.linear(down, self.lora_B[:, span])

    def _all(self, x: torch.Tensor, gates: Gates) -> torch.Tensor:
        """Any mixture: all experts' products, weighted between A and B."""
        weights = gates.weights if gates.weights.dim() == 3 else gates.weights.unsqueeze(1)
        down = F.linear(x, self.lora_A)
        down = down * (weights[..., self.owner] * self.scale).to(down.dtype)
        return F.linear(down, self.lora_B)

    def _gathered(self, x: torch.Tensor, hard: torch.Tensor) -> torch.Tensor:
        """One expert a row out of many: gather the rows' matrices instead of computing them all.

        Pays with many experts and more than a few frames: a decoder step would spend more on the
        copies than it saves.
        """
        rank = self.ranks[0]
        a = self.lora_A.view(len(self.ranks), rank, -1)[hard]  # (batch, rank, in)
        b = self.lora_B.view(-1, len(self.ranks), rank)[:, hard]  # (out, batch, rank)
        scale = self.scale.view(len(self.ranks), rank)[hard, 0].view(-1, 1, 1)
        down = torch.matmul(x, a.transpose(1, 2)) * scale.to(x.dtype)
        return torch.matmul(down, b.permute(1, 2, 0))
