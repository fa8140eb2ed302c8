"""Where to cut a recording: windows that the encoder takes, and pieces of one language.

Cuts are put where the signal is quietest, so that they go between words where there is a between.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from espnet_moe.data.utterance import SAMPLE_RATE, Seconds
from espnet_moe.errors import UserError

Samples = npt.NDArray[np.float32]
Span = tuple[int, int]  # samples: start, end
Labelled = tuple[Seconds, Seconds, str]  # start, end, label

HOP = SAMPLE_RATE // 100  # energies are 10 ms apart …
_SMOOTH = 10  # … and looked at over 100 ms: a pause, not a plosive's closure


def energies(speech: Samples) -> npt.NDArray[np.float64]:
    """Mean power around every 10 ms, over 100 ms.

    Args:
        speech: ``(samples,)`` at 16 kHz.

    Returns:
        ``(ceil(samples / 160),)``; entry ``i`` belongs to sample ``160 · i``.
    """
    count = -(-len(speech) // HOP)
    padded = np.zeros(count * HOP)
    padded[: len(speech)] = speech
    power = np.concatenate([[0.0], np.cumsum((padded.reshape(count, HOP) ** 2).mean(axis=1))])
    at = np.arange(count)
    low = np.maximum(at - _SMOOTH // 2, 0)
    high = np.minimum(at + _SMOOTH // 2, count)
    mean: npt.NDArray[np.float64] = (power[high] - power[low]) / np.maximum(high - low, 1)
    return mean


def quietest(power: npt.NDArray[np.float64], low: int, high: int, near: int) -> int:
    """The quietest sample in ``low..high``; of equally quiet ones that nearest to ``near``.

    Args:
        power: From :func:`energies`.
        low: First sample that may be it.
        high: Last sample that may be it.
        near: Sample that the cut would be at if all were equally quiet.
    """
    first, last = -(-low // HOP), min(high // HOP, len(power) - 1)
    if first > last:
        return min(max(near, low), high)
    found = power[first : last + 1]
    # Differences far below what can be heard (-120 dB) are no reason to move a cut.
    ties = np.flatnonzero(found <= found.min() + 1e-12) + first
    return int(ties[np.abs(ties * HOP - near).argmin()]) * HOP


def windows(speech: Samples, longest: Seconds, shortest: Seconds = 1.0) -> list[Span]:
    """Cut a recording into windows of at most ``longest`` seconds.

    Each cut is at the quietest point of the second half of its window.

    Args:
        speech: ``(samples,)`` at 16 kHz.
        longest: Longest window.
        shortest: What is left for the last window is at least this long.

    Returns:
        Start and end of every window in samples; together they cover the recording once.

    Raises:
        UserError: Where windows of ``longest`` would leave less than ``shortest`` to cut in.
    """
    limit, rest = int(longest * SAMPLE_RATE), int(shortest * SAMPLE_RATE)
    if len(speech) <= limit:
        return [(0, len(speech))]
    if limit <= rest:
        raise UserError(
            f"windows of {longest:g} s are too short, they are above {shortest:g} s: give a "
            "smaller window_margin, which is taken off what the model hears at once"
        )
    power, start, found = energies(speech), 0, []
    while len(speech) - start > limit:
        low, high = start + limit // 2, min(start + limit, len(speech) - rest)
        cut = quietest(power, min(low, high), high, high)
        found.append((start, cut))
        start = cut
    return [*found, (start, len(speech))]


def stretches(
    speech: Samples, shortest: Seconds = 0.8, depth: float = 12.0, around: Seconds = 1.5
) -> list[Span]:
    """Cut an utterance at its pauses.

    A pause is a moment that is quieter by ``depth`` dB than the speech around it (the louder
    quarter of it); the deepest are cut first, and no cut comes nearer than ``shortest`` to another.

    Args:
        speech: ``(samples,)`` at 16 kHz.
        shortest: Shortest stretch between two cuts, and at the ends.
        depth: How much quieter a pause is, dB.
        around: How far the speech around it reaches to either side.

    Returns:
        Start and end of every stretch in samples; together they cover the utterance once.
    """
    level = 10 * np.log10(energies(speech) + 1e-12)
    reach = round(around * SAMPLE_RATE) // HOP
    least = max(1, round(shortest * SAMPLE_RATE) // HOP)  # 0 would cut nothing off the beginning
    padded = np.pad(level, reach, mode="reflect" if len(level) > reach else "edge")
    loud = np.percentile(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), 75, 1)
    below = loud - level
    cuts = [0, len(level)]
    for at in np.argsort(-below, kind="stable"):
        if below[at] < depth:
            break
        if all(abs(at - cut) >= least for cut in cuts):
            cuts.append(int(at))
    bounds = [cut * HOP for cut in sorted(cuts)[:-1]] + [len(speech)]
    return list(itertools.pairwise(bounds))


def pieces(
    speech: Samples,
    segments: Sequence[Labelled],
    shortest: Seconds = 0.4,
    radius: Seconds = 0.3,
) -> list[tuple[int, int, str]]:
    """Cut an utterance where its label changes.

    Segments shorter than ``shortest`` join their longer neighbour; every cut then moves to the
    quietest point within ``radius`` of the change, no further than leaves each piece that long.

    Args:
        speech: ``(samples,)`` at 16 kHz.
        segments: Start, end (seconds) and label, one after the other from the beginning.
        shortest: Shortest piece, where the utterance is long enough.
        radius: How far a cut may move.

    Returns:
        Start and end in samples and label of every piece; together they cover the utterance once.
    """
    merged = merge_short(segments, shortest)
    if len(merged) < 2:
        return [(0, len(speech), merged[0][2])]
    power, least = energies(speech), int(shortest * SAMPLE_RATE)
    bounds = [0]
    changes = [round(start * SAMPLE_RATE) for start, _, _ in merged[1:]]
    for i, near in enumerate(changes):
        near = min(near, len(speech))
        following = min(changes[i + 1], len(speech)) if i + 1 < len(changes) else len(speech)
        low = max(near - int(radius * SAMPLE_RATE), bounds[-1] + least)
        high = min(near + int(radius * SAMPLE_RATE), following - least)
        bounds.append(quietest(power, low, high, near) if low <= high else near)
    bounds.append(len(speech))
    labels = [label for _, _, label in merged]
    cut = zip(bounds[:-1], bounds[1:], labels, strict=True)
    return [(a, b, label) for a, b, label in cut if b > a]


def merge_short(segments: Sequence[Labelled], shortest: Seconds) -> list[Labelled]:
    """Join segments under ``shortest`` seconds to their longer neighbour, the shortest first."""
    rest = _join_equal(segments)
    while len(rest) > 1:
        i = min(range(len(rest)), key=lambda j: rest[j][1] - rest[j][0])
        start, end, _ = rest[i]
        if end - start >= shortest:
            break
        sides = [j for j in (i - 1, i + 1) if 0 <= j < len(rest)]
        j = max(sides, key=lambda n: rest[n][1] - rest[n][0])
        low, high = min(start, rest[j][0]), max(end, rest[j][1])
        rest[min(i, j) : max(i, j) + 1] = [(low, high, rest[j][2])]
        rest = _join_equal(rest)
    return rest


def _join_equal(segments: Sequence[Labelled]) -> list[Labelled]:
    joined: list[Labelled] = []
    for start, end, label in segments:
        if joined and joined[-1][2] == label:
            start = joined.pop()[0]
        joined.append((start, end, label))
    return joined
