"""Linear layers that are quick for a decoding step: a few rows against large weights.

MKL's product of 8 to 48 rows with a weight, ``x Wᵀ``, takes 1.1 to 1.8 times as long as the same
numbers the other way round, ``W xᵀ``: widths of 768 and 1280, one thread of an Intel Xeon with
AVX-512. More rows gain nothing; fewer rows, and smaller weights, lose. With other processors or
several threads it was not measured, and nothing is changed.
"""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

ROWS = range(8, 49)
NUMBERS = 128 * 3072  # of a weight, at least


@cache
def weight_first_pays() -> bool:
    """Whether this machine is one of those where it was measured to."""
    cpus = Path("/proc/cpuinfo")
    return (
        torch.backends.mkl.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and cpus.exists()
        and "GenuineIntel" in cpus.read_text(errors="replace")
    )


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x Wᵀ + b`` as :func:`torch.nn.functional.linear`, to rounding, the quicker way round.

    The other way only without gradient, in single precision, on a processor.

    Args:
        x: ``(…, in)``.
        weight: ``(out, in)``.
        bias: ``(out,)``.

    Returns:
        ``(…, out)``, contiguous where it is computed the other way.
    """
    rows = x.numel() // max(x.size(-1), 1)
    if (
        rows not in ROWS
        or weight.numel() < NUMBERS
        or torch.is_grad_enabled()
        or not x.dtype == weight.dtype == torch.float32
        or not x.device.type == weight.device.type == "cpu"
        or torch.is_autocast_enabled("cpu")
        or torch.get_num_threads() > 1
        or not weight_first_pays()
    ):
        return F.linear(x, weight, bias)
    columns = torch.mm(weight, x.reshape(rows, -1).t())  # (out, rows)
    y = x.new_empty(rows, weight.size(0))
    if bias is None:
        y.copy_(columns.t())
    else:
        torch.add(columns.t(), bias, out=y)
    return y.view(*x.shape[:-1], -1)


class FewRowsLinear(nn.Linear):
    """A linear layer whose product is :func:`linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``(…, in)`` → ``(…, out)``."""
        return linear(input, self.weight, self.bias)


def quicken(module: nn.Module) -> None:
    """Make the plain linear layers of a decoder such ones, in place: weights and names stay."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = FewRowsLinear
