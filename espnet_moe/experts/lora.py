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
from espnet_moe.linear import linear


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
        self.scales = tuple(a / r for a, r in zip(alphas, ranks, strict=True))
        scale = [s for s, r in zip(self.scales, ranks, strict=True) for _ in range(r)]
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
        return self._plus(self.B(expert).float() @ self.A(expert).float() * self.scale[span.start])

    @torch.no_grad()
    def merged_mixture(self, weights: torch.Tensor) -> nn.Linear:
        """The same for ``W + B diag(weights · scale) A``, with ``weights (experts,)``."""
        each = weights.to(self.scale)[self.owner] * self.scale  # (Σr,)
        return self._plus((self.lora_B.float() * each) @ self.lora_A.float())

    def _plus(self, update: torch.Tensor) -> nn.Linear:
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
        gates = current_gates()
        if gates is None or self in gates.off:
            return self.base(x)
        if gates.uniform is None and gates.weights.size(0) != x.size(0):
            # Broadcasting would give every row the experts of one.
            raise ValueError(f"gates of {gates.weights.size(0)} rows for a batch of {x.size(0)}")
        if self._merging_pays(x, gates):
            return self._merged_rows(x, gates)
        flat = x.flatten(0, -2)  # (batch · frames, in)
        # Fresh and nobody else's: what the experts do is added to it where it lies, by the product
        # itself. In three dimensions it would be a view, whose gradient autograd copies.
        y = self.base(flat)
        shape = (*x.shape[:-1], self.out_features)
        x = F.dropout(x, self.dropout, self.training)
        if gates.uniform is not None:
            return self._one(y, x.flatten(0, -2), gates.uniform).view(shape)
        several = len(set(self.ranks)) == 1 and len(self.ranks) > 2 and x.size(1) > 4
        if gates.hard is not None and several:
            return self._gathered(y.view(shape), x, gates.hard)
        return self._all(y, x, gates).view(shape)

    def _one(self, y: torch.Tensor, x: torch.Tensor, expert: int) -> torch.Tensor:
        """One expert for every row: slices of A and B, no copy."""
        span = self._span(expert)
        down = linear(x, self.lora_A[span])
        return _add_product(y, down, self.lora_B[:, span], self.scales[expert])

    def _all(self, y: torch.Tensor, x: torch.Tensor, gates: Gates) -> torch.Tensor:
        """Any mixture: all experts' products, weighted between A and B."""
        down = linear(x.flatten(0, -2), self.lora_A).view(*x.shape[:-1], sum(self.ranks))
        weights = self._column_weights(gates).to(down.dtype)
        # In place only where the gradient does not ask what was there.
        down = down * weights if torch.is_grad_enabled() else down.mul_(weights)
        return _add_product(y, down.flatten(0, -2), self.lora_B)

    def _merging_pays(self, x: torch.Tensor, gates: Gates) -> bool:
        """Whether a weight of each row's own costs less than its frames' products with A and B.

        ``Σr · in · out`` operations against ``frames · Σr · (in + out)``, whatever the ranks; twice
        as many, because the sums have to be written and read. Only where nothing else is asked:
        without gradient, a mixture a row, in single precision (in half precision the update would
        be rounded away), and on a processor, which calls one row after the other without delay.
        """
        frames = x.size(1)
        return (
            frames * (self.in_features + self.out_features)
            >= 2 * self.in_features * self.out_features
            and x.device.type == "cpu"
            and gates.weights.dim() == 2
            and gates.hard is None
            and gates.uniform is None
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
        )

    def _merged_rows(self, x: torch.Tensor, gates: Gates) -> torch.Tensor:
        """Rows of many frames: ``x (W + B diag(weights · scale) A)ᵀ``, one row after the other."""
        weights = self._column_weights(gates)  # (batch, 1, Σr)
        y = x.new_empty(*x.shape[:-1], self.out_features)
        for row, frames, out in zip(weights, x, y, strict=True):
            merged = torch.addmm(self.weight, self.lora_B * row, self.lora_A)
            if self.bias is None:
                torch.mm(frames, merged.t(), out=out)
            else:
                torch.addmm(self.bias, frames, merged.t(), out=out)
        return y

    def _column_weights(self, gates: Gates) -> torch.Tensor:
        """What the columns of the products with A are multiplied by: ``(batch, 1 or frames, Σr)``.

        The same in all layers of a set: made once a batch, except where the gates have a gradient,
        which a checkpointed layer must find in what it computes itself.
        """
        if not gates.weights.requires_grad:
            # What was made in inference mode may not be used in training.
            key = (self.ranks, self.scales, torch.is_inference_mode_enabled())
            if key not in gates.made:
                gates.made[key] = self._spread(gates.weights)
            return gates.made[key]
        return self._spread(gates.weights)

    def _spread(self, weights: torch.Tensor) -> torch.Tensor:
        weights = weights if weights.dim() == 3 else weights.unsqueeze(1)
        return weights[..., self.owner] * self.scale

    def _gathered(self, y: torch.Tensor, x: torch.Tensor, hard: torch.Tensor) -> torch.Tensor:
        """One expert a row: gather the rows' matrices instead of computing all experts.

        Pays with more than a few frames: a decoder step would spend more on the copies than it
        saves.
        """
        rank = self.ranks[0]
        a = self.lora_A.view(len(self.ranks), rank, -1).index_select(0, hard)  # (batch, rank, in)
        b = self.lora_B.view(-1, len(self.ranks), rank).index_select(1, hard)  # (out, batch, rank)
        scale = self.scale.view(len(self.ranks), rank)[hard, 0].view(-1, 1, 1)
        down = torch.matmul(x, a.transpose(1, 2)) * scale.to(x.dtype)
        up = b.permute(1, 2, 0)  # (batch, rank, out)
        # The update is added by the product; in place, autograd would copy the view's gradient.
        if torch.is_grad_enabled():
            return torch.baddbmm(y, down, up)
        return y.baddbmm_(down.to(y.dtype), up.to(y.dtype))


def _add_product(
    y: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """``y + scale · down upᵀ`` in ``y (n, out)``; ``down (n, rank)``, ``up (out, rank)``."""
    # Automatic mixed precision knows nothing of products in place.
    return y.addmm_(down.to(y.dtype), up.to(y.dtype).t(), alpha=scale)
