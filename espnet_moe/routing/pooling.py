"""Pooling of encoder frames that padding cannot reach: for routers and for embeddings alike."""

import torch

from espnet_moe.errors import UserError

SAMPLE_RATE = 16000
FRAME_SAMPLES = 320  # of Whisper's encoder frames, 20 ms
POOLINGS = ("mean", "mean_std")
_SMALLEST_VARIANCE = 1e-10  # the root of zero has no gradient


def frames_of(samples: torch.Tensor, frame_samples: int = FRAME_SAMPLES) -> torch.Tensor:
    """Encoder frames ``(batch,)`` that hold speech in rows of ``samples (batch,)`` at 16 kHz.

    An encoder that pads to 30 s returns more of them; those behind are silence. One without
    padding at its convolutions returns a frame or two less.
    """
    return (samples + frame_samples - 1) // frame_samples


def valid_frames(lengths: torch.Tensor, frames: int) -> torch.Tensor:
    """Which frames are inside their rows.

    Args:
        lengths: ``(batch,)`` valid frames.
        frames: Frames of the longest row, padding included.

    Returns:
        ``(batch, frames)`` bool.
    """
    return torch.arange(frames, device=lengths.device) < lengths.unsqueeze(1)


def hold_last(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Repeat each row's last valid frame behind its end.

    Args:
        values: ``(batch, frames, anything)``.
        lengths: ``(batch,)`` valid frames; a row without any holds its first.

    Returns:
        The same shape.
    """
    at = torch.arange(values.size(1), device=values.device).minimum(lengths.unsqueeze(1) - 1)
    return values.gather(1, at.clamp(min=0).unsqueeze(2).expand_as(values))


def check_pooling(kind: str) -> None:
    """Raise an error for an unknown pooling.

    Raises:
        UserError: Says what is legal.
    """
    if kind not in POOLINGS:
        raise UserError(f"pooling '{kind}' is unknown: choose one of {', '.join(POOLINGS)}")


def pooled_dim(dim: int, kind: str) -> int:
    """Width of what :func:`pool` makes of frames ``dim`` wide."""
    check_pooling(kind)
    return dim if kind == "mean" else 2 * dim


def pool(frames: torch.Tensor, lengths: torch.Tensor, kind: str = "mean") -> torch.Tensor:
    """Pool the valid frames of every row, in single precision.

    Args:
        frames: ``(batch, frames, dim)``; what stands behind a row's end does not matter.
        lengths: ``(batch,)`` valid frames. A row without any gives a mean of zero.
        kind: ``mean``, or ``mean_std``: the mean and, behind it, the standard deviation.

    Returns:
        ``(batch, dim)`` or ``(batch, 2 * dim)``, float32.

    Raises:
        UserError: For an unknown kind.
    """
    check_pooling(kind)
    outside = ~valid_frames(lengths, frames.size(1)).unsqueeze(2)
    counts = lengths.clamp(min=1).unsqueeze(1).to(torch.float32)  # (batch, 1)
    mean = frames.masked_fill(outside, 0.0).sum(1, dtype=torch.float32) / counts
    if kind == "mean":
        return mean
    centred = (frames - mean.unsqueeze(1)).masked_fill(outside, 0.0)
    variance = centred.square().sum(1) / counts
    return torch.cat([mean, variance.clamp(min=_SMALLEST_VARIANCE).sqrt()], dim=1)
