"""Smoothing of frame-level decisions: speakers do not change language every 20 ms."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from espnet_moe.errors import UserError
from espnet_moe.routing.pooling import FRAME_SAMPLES, SAMPLE_RATE, valid_frames

METHODS = ("none", "median", "viterbi")
LONGEST = 30.0  # seconds: what an encoder takes


@dataclass(frozen=True)
class SmoothingOptions:
    """How frame-level decisions are smoothed.

    Attributes:
        method: ``none``; ``median`` of each language's posterior over a window; ``viterbi``: the
            best path where every change of language costs something.
        window: Seconds of the median's window.
        switch_penalty: What a change costs on a Viterbi path, in nats, where every 20 ms count
            once: with longer frames each counts for as many.
        resolution: Seconds between the moments at which a Viterbi path may change.
    """

    method: str = "viterbi"
    window: float = 0.5
    switch_penalty: float = 10.0
    resolution: float = 0.02

    def __post_init__(self) -> None:
        problems = []
        if self.method not in METHODS:
            legal = ", ".join(METHODS)
            problems.append(f"method '{self.method}' is unknown: choose one of {legal}")
        if not 0 < self.window <= LONGEST:
            problems.append(f"window is {self.window} s, but must be above 0, up to {LONGEST:g}")
        if not self.switch_penalty >= 0:
            problems.append(f"switch_penalty is {self.switch_penalty}, but must be at least 0")
        if not 0 < self.resolution <= LONGEST:
            problems.append(
                f"resolution is {self.resolution} s, but must be above 0, up to {LONGEST:g}"
            )
        if problems:
            raise UserError(f"smoothing: {'; '.join(problems)}")


def smooth(
    logits: torch.Tensor,
    lengths: torch.Tensor,
    options: SmoothingOptions,
    frame_samples: int = FRAME_SAMPLES,
) -> torch.Tensor:
    """Decide the language of every frame.

    Args:
        logits: ``(batch, frames, languages)``; minus infinity rules a language out.
        lengths: ``(batch,)`` valid frames.
        options: The method.
        frame_samples: Samples from one frame to the next.

    Returns:
        ``(batch, frames)`` language numbers; a row's last one is repeated behind its end.
    """
    frames = logits.size(1)
    log, seconds = logits.detach().float().log_softmax(-1), frame_samples / SAMPLE_RATE
    if options.method == "viterbi":
        inside = valid_frames(lengths, frames)
        step = max(1, round(options.resolution / seconds))
        log = log * (frame_samples / FRAME_SAMPLES)
        log = F.pad(log.masked_fill(~inside.unsqueeze(2), 0.0), (0, 0, 0, -frames % step))
        path = _viterbi(log.unflatten(1, (-1, step)).sum(2), options.switch_penalty)
        return path.repeat_interleave(step, dim=1)[:, :frames].to(logits.device)
    if options.method == "median":
        window = round(options.window / seconds)
        tracks = _median(log.exp().transpose(1, 2), lengths.unsqueeze(1), window)
        labels = tracks.argmax(1)
    else:
        labels = log.argmax(-1)
    last = (lengths - 1).clamp(min=0).unsqueeze(1)
    return labels.gather(1, torch.arange(frames, device=last.device).minimum(last))


def median_filter(labels: torch.Tensor, window_frames: int) -> torch.Tensor:
    """Running median; the ends are continued by their last value.

    Args:
        labels: ``(frames,)`` numbers, or several such rows ``(..., frames)``.
        window_frames: Width of the window; an even one is made odd by one frame more.

    Returns:
        The shape and type of ``labels``.
    """
    lengths = torch.full((*labels.shape[:-1],), labels.size(-1), device=labels.device)
    return _median(labels, lengths, window_frames)


def _median(values: torch.Tensor, lengths: torch.Tensor, window: int) -> torch.Tensor:
    """Median over a window of ``values (..., frames)`` inside ``lengths (...)`` of each row."""
    reach = max(window, 1) // 2
    frames = values.size(-1)
    around = torch.arange(frames, device=values.device).unsqueeze(1)
    around = around + torch.arange(-reach, reach + 1, device=values.device)  # (frames, window)
    last = (lengths - 1).clamp(min=0)[..., None, None]
    around = around.clamp(min=0).minimum(last)  # (..., frames, window)
    around = around.expand(*values.shape, around.size(-1)).flatten(-2)
    return values.gather(-1, around).unflatten(-1, (frames, -1)).median(-1).values


def viterbi(log_probs: torch.Tensor, switch_penalty: float) -> torch.Tensor:
    """The best path through log posteriors where every change of class costs the same.

    Args:
        log_probs: ``(frames, classes)``.
        switch_penalty: Nats, at least 0.

    Returns:
        ``(frames,)`` class numbers.
    """
    return _viterbi(log_probs.unsqueeze(0), switch_penalty)[0].to(log_probs.device)


def _viterbi(log_probs: torch.Tensor, switch_penalty: float) -> torch.Tensor:
    """Paths ``(batch, frames)``, on the CPU, through ``log_probs (batch, frames, classes)``.

    Frames of zeros behind a row's end change nothing: the best path stays where it is. In numpy,
    whose operations on arrays as small as these take a fraction of torch's time.
    """
    steps = np.ascontiguousarray(log_probs.detach().double().cpu().numpy().transpose(1, 0, 2))
    frames, batch, classes = steps.shape
    came_from = np.empty((frames, batch, classes), dtype=np.int64)
    stay = np.arange(classes)[None, :]
    score = np.zeros((batch, classes))
    for t in range(frames):
        best = score.argmax(1)[:, None]
        moved = np.take_along_axis(score, best, 1) - (switch_penalty if t else 0.0)
        came_from[t] = np.where(score >= moved, stay, best)
        score = np.maximum(score, moved) + steps[t]
    path = np.empty((frames, batch), dtype=np.int64)
    rows, at = np.arange(batch), score.argmax(1)
    for t in reversed(range(frames)):
        path[t] = at
        at = came_from[t, rows, at]
    return torch.from_numpy(path.T.copy())


def segments(
    labels: torch.Tensor, names: Sequence[str], frame_samples: int = FRAME_SAMPLES
) -> list[tuple[float, float, str]]:
    """Runs of equal labels.

    Args:
        labels: ``(frames,)`` without padding.
        names: What the labels stand for.
        frame_samples: Samples from one frame to the next.

    Returns:
        Start and end in seconds, and name, of each run in turn.
    """
    found: list[tuple[float, float, str]] = []
    start, values = 0, labels.tolist()
    for i in range(1, len(values) + 1):
        if i == len(values) or values[i] != values[start]:
            begin, end = (round(n * frame_samples / SAMPLE_RATE, 2) for n in (start, i))
            found.append((begin, end, names[values[start]]))
            start = i
    return found
