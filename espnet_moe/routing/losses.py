"""Losses of routers. Each is a mean over the rows of this process.

Averaged over the processes of a distributed training, weighted by their rows, each has the value
and the gradient that one process has with all rows at once. At frame level a row counts by the mean
over its valid frames, however many there are.
"""

import torch
import torch.nn.functional as F

from espnet_moe.errors import UserError
from espnet_moe.routing.pooling import valid_frames

IGNORE = -100  # the label of a frame that does not count


def global_sum(x: torch.Tensor) -> torch.Tensor:
    """Sum over the processes, without gradient; ``x`` itself where there is only one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x
    total = x.detach().clone()
    torch.distributed.all_reduce(total)
    return total


def cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    lengths: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy against labels or soft targets.

    Args:
        logits: ``(batch, classes)`` or ``(batch, frames, classes)``.
        targets: Labels ``(batch,)`` or ``(batch, frames)``, :data:`IGNORE` where none is known; or
            soft ones of the shape of the logits, all zero where none is known.
        lengths: ``(batch,)`` valid frames; needed at frame level.
        weight: ``(batch,)`` or ``(batch, 1)`` how much a row counts, or ``None`` for one each.
        smoothing: Label smoothing in [0, 1): this much of a target is spread evenly
            (arXiv:1512.00567).

    Returns:
        Scalar: the mean over the rows, each times its weight; rows without a target add zero.
    """
    logits = logits.float()
    if targets.dim() < logits.dim():
        known = targets >= 0
        targets = F.one_hot(targets.clamp(min=0), logits.size(-1)) * known.unsqueeze(-1)
    targets = targets.to(logits.dtype)
    known = targets.sum(-1) > 0
    if smoothing > 0:
        even = targets.sum(-1, keepdim=True) / logits.size(-1)
        targets = (1 - smoothing) * targets + smoothing * even
    each = -(targets * _finite(logits.log_softmax(-1))).sum(-1)
    rows = _row_means(each, lengths, logits.dim() == 3, known)
    if weight is not None:
        rows = rows * weight.reshape(-1)
    return rows.mean()


def balance_loss(
    logits: torch.Tensor,
    lengths: torch.Tensor | None = None,
    dispatch: torch.Tensor | None = None,
) -> torch.Tensor:
    """Load balance: ``E · Σₑ fₑ · Pₑ`` (Switch Transformers, arXiv:2101.03961, equations 4-6).

    ``fₑ`` is the fraction of rows that go to an expert, over all processes and without gradient;
    ``Pₑ`` is its mean posterior over the rows of this process. Perfect balance gives 1.

    Args:
        logits: ``(batch, experts)`` or ``(batch, frames, experts)``.
        lengths: ``(batch,)`` valid frames; needed at frame level.
        dispatch: What each row or frame sends to each expert, of the shape of the logits; the
            whole to the most probable one if ``None``.
    """
    logits = logits.float()
    experts, frame_level = logits.size(-1), logits.dim() == 3
    if dispatch is None:
        dispatch = F.one_hot(logits.argmax(-1), experts)
    sent = _row_means(dispatch.detach().to(logits.dtype), lengths, frame_level)  # (batch, experts)
    counts = global_sum(torch.cat([sent.sum(0), sent.new_tensor([len(sent)])]))
    fractions = counts[:-1] / counts[-1].clamp(min=1)
    posteriors = _row_means(logits.softmax(-1), lengths, frame_level).mean(0)
    return experts * (fractions * posteriors).sum()


def z_loss(logits: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """Router z-loss: the mean of ``logsumexp(logits)²``, against logits that grow without end.

    Zoph et al., "ST-MoE", arXiv:2202.08906, equation 5.

    Args:
        logits: ``(batch, experts)`` or ``(batch, frames, experts)``.
        lengths: ``(batch,)`` valid frames; needed at frame level.
    """
    squares = logits.float().logsumexp(-1).square()
    return _row_means(squares, lengths, logits.dim() == 3).mean()


def entropy_loss(logits: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """Mean entropy of the posteriors in nats; making it small makes decisions sure.

    Args:
        logits: ``(batch, experts)`` or ``(batch, frames, experts)``.
        lengths: ``(batch,)`` valid frames; needed at frame level.
    """
    log = logits.float().log_softmax(-1)
    entropies = -(log.exp() * _finite(log)).sum(-1)
    return _row_means(entropies, lengths, logits.dim() == 3).mean()


def _finite(log: torch.Tensor) -> torch.Tensor:
    """Log posteriors with zero for those of probability zero, which are multiplied by zero."""
    return log.masked_fill(log == float("-inf"), 0.0)


def _row_means(
    x: torch.Tensor,
    lengths: torch.Tensor | None,
    frame_level: bool,
    known: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean over the valid frames of each row.

    Args:
        x: ``(batch, …)``, or ``(batch, frames, …)`` at frame level.
        lengths: ``(batch,)`` valid frames, or ``None`` at utterance level.
        frame_level: Whether there are frames.
        known: ``(batch,)`` or ``(batch, frames)`` what has a target; the rest does not count.

    Returns:
        ``(batch, …)``.
    """
    if not frame_level:
        return x if known is None else x.masked_fill(~known, 0.0)
    if lengths is None:
        raise UserError("frame-level logits need lengths: the valid frames of each row")
    inside = valid_frames(lengths, x.size(1))
    if known is not None:
        inside = inside & known
    counts = inside.sum(1).clamp(min=1)
    if x.dim() == 3:
        inside, counts = inside.unsqueeze(2), counts.unsqueeze(1)
    return x.masked_fill(~inside, 0.0).sum(1) / counts
