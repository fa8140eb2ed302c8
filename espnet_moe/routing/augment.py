"""Augmentation of a router's training speech: short pieces, and pieces of several utterances."""

import torch

from espnet_moe.routing.losses import IGNORE
from espnet_moe.routing.pooling import FRAME_SAMPLES, frames_of, valid_frames

SAMPLE_RATE = 16000
MAX_SAMPLES = 30 * SAMPLE_RATE  # what encoders take in one piece


def crop(
    speech: torch.Tensor,
    lengths: torch.Tensor,
    seconds: tuple[float, float],
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut every row to a random piece.

    Args:
        speech: ``(batch, samples)`` at 16 kHz.
        lengths: ``(batch,)`` samples.
        seconds: Shortest and longest piece; a row that is shorter than its piece stays whole.
        generator: Source of the draws; the global one if ``None``.

    Returns:
        Speech ``(batch, samples of the longest piece)``, zeros behind a row's end, and lengths.
    """
    draws = _uniform((2, len(speech)), generator).to(speech.device)
    low, high = (s * SAMPLE_RATE for s in seconds)
    wanted = (low + (high - low) * draws[0]).long().clamp(min=1)
    kept = torch.minimum(wanted, lengths)
    starts = (draws[1] * (lengths - kept + 1)).long().clamp(max=lengths - kept)
    longest = int(kept.max())
    taken = starts.unsqueeze(1) + torch.arange(longest, device=speech.device)
    pieces = speech.gather(1, taken.clamp(max=speech.size(1) - 1))
    return pieces * valid_frames(kept, longest), kept


def splice(
    speech: torch.Tensor,
    lengths: torch.Tensor,
    labels: torch.Tensor,
    seconds: tuple[float, float],
    share: float,
    generator: torch.Generator | None = None,
    cross_fade: float = 0.02,
    frame_samples: int = FRAME_SAMPLES,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Replace a share of the rows by pieces of two or three rows joined, the first its own.

    Args:
        speech: ``(batch, samples)`` at 16 kHz.
        lengths: ``(batch,)`` samples.
        labels: ``(batch,)`` class of each row.
        seconds: Shortest and longest piece; a row that is shorter than its piece gives all it has.
        share: Probability that a row is replaced.
        generator: Source of the draws; the global one if ``None``.
        cross_fade: Seconds over which neighbours overlap; at most half of the shorter one.
        frame_samples: Samples from one encoder frame to the next.

    Returns:
        Speech, lengths, and labels ``(batch, frames)`` of the encoder's frames: that of the
        piece which a frame's middle is in, a piece ending in the middle of its cross-fade, and
        :data:`~espnet_moe.routing.losses.IGNORE` behind a row's end.
    """
    rows, changes = [], []
    sizes = lengths.tolist()
    for i, chosen in enumerate((_uniform((len(speech),), generator) < share).tolist()):
        if chosen:
            row, bounds, sources = _join(speech, sizes, i, seconds, generator, cross_fade)
        else:
            row, bounds, sources = speech[i, : sizes[i]], [], [i]
        rows.append(row)
        changes.append((bounds, sources))
    new_lengths = torch.tensor([len(r) for r in rows], device=lengths.device, dtype=lengths.dtype)
    joined = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    counts = frames_of(new_lengths, frame_samples)
    frames = int(counts.max())
    middles = torch.arange(frames, device=labels.device) * frame_samples + frame_samples // 2
    of_frames = torch.stack(
        [
            labels[torch.tensor(sources, device=labels.device)][
                torch.bucketize(middles, middles.new_tensor(bounds), right=True)
            ]
            for bounds, sources in changes
        ]
    )
    return joined, new_lengths, of_frames.masked_fill(~valid_frames(counts, frames), IGNORE)


def _join(
    speech: torch.Tensor,
    sizes: list[int],
    own: int,
    seconds: tuple[float, float],
    generator: torch.Generator | None,
    cross_fade: float,
) -> tuple[torch.Tensor, list[int], list[int]]:
    """One row of pieces: its samples, where the pieces change, and the rows that they are of."""
    low, high = (s * SAMPLE_RATE for s in seconds)
    draws = _uniform((9,), generator).tolist()
    count = 2 + (draws[0] < 0.5)
    sources = [own, *(int(d * len(sizes)) for d in draws[1:count])]
    joined, bounds, before = speech.new_zeros(0), [], 0
    for source, length, start in zip(sources, draws[3:6], draws[6:9], strict=False):
        kept = max(1, min(int(low + (high - low) * length), sizes[source], MAX_SAMPLES // count))
        begin = int(start * (sizes[source] - kept + 1))
        piece = speech[source, begin : begin + kept]
        if len(joined):
            # Of the piece before, not of all before it: a fade must not reach past a short piece.
            overlap = min(int(cross_fade * SAMPLE_RATE), before // 2, kept // 2)
            bounds.append(len(joined) - overlap // 2)
            joined = _cross_fade(joined, piece, overlap)
        else:
            joined = piece
        before = kept
    return joined, bounds, sources


def _cross_fade(left: torch.Tensor, right: torch.Tensor, overlap: int) -> torch.Tensor:
    """Join two signals, the first fading out over ``overlap`` samples while the second fades in."""
    if overlap == 0:
        return torch.cat([left, right])
    rising = torch.linspace(0, 1, overlap + 2, device=left.device, dtype=left.dtype)[1:-1]
    mixed = left[-overlap:] * (1 - rising) + right[:overlap] * rising
    return torch.cat([left[:-overlap], mixed, right[overlap:]])


def _uniform(shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
    """Draws in [0, 1) where the generator is, so that any device draws the same."""
    device = "cpu" if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
