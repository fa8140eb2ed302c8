"""Which utterances of several sources make a training set: shares, hours, repeated or not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from espnet_moe.data.datadir import DataDirError
from espnet_moe.data.utterance import SAMPLE_RATE

MEASURES = ("hours", "utterances")


@dataclass(frozen=True)
class MixOptions:
    """How much of each source.

    Attributes:
        shares: Of each source in the whole, of any sum; ``None``: all there is.
        by: Whether shares are of the ``hours`` or of the ``utterances``.
        replacement: Repeat utterances where a source has less than its share of what all sources
            have together; else the set is as large as the scarcest source allows.
        max_hours: Of the whole; ``None``: no limit.
        seed: Of the choice. Sets of fewer hours hold no utterance that those of more have not.
    """

    shares: Sequence[float] | None = None
    by: str = "hours"
    replacement: bool = False
    max_hours: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.by not in MEASURES:
            problems.append(f"a mixture is by {' or '.join(MEASURES)}, not by '{self.by}'")
        if self.max_hours is not None and self.max_hours <= 0:
            problems.append(f"{self.max_hours:g} hours are asked for: give more than 0")
        if self.shares is not None and (
            not all(share >= 0 for share in self.shares) or sum(self.shares) <= 0
        ):
            problems.append(f"shares {' '.join(map(str, self.shares))}: give numbers above 0")
        if self.replacement and self.shares is None:
            problems.append("repetition is for shares: give them")
        if problems:
            raise DataDirError("; ".join(problems))


def choose(sources: Sequence[Mapping[str, int]], options: MixOptions) -> list[dict[str, int]]:
    """Choose utterances.

    Args:
        sources: Of each its utterances: samples at 16 kHz by id.
        options: How much of each source.

    Returns:
        Of each source, by id, how often an utterance is taken; at least once.

    Raises:
        DataDirError: Where the shares are of another number of sources, one that has a share is
            empty, or nothing would be taken.
    """
    if options.shares is None:
        whole = {key: samples for source in sources for key, samples in source.items()}
        taken = _take(whole, _limit(options), False, options)
        chosen = [{key: 1 for key in source if key in taken} for source in sources]
    else:
        chosen = _by_shares(sources, options)
    if not any(chosen):
        raise DataDirError(
            "what is asked for is less than an utterance: ask for more hours or larger shares"
        )
    return chosen


def _by_shares(sources: Sequence[Mapping[str, int]], options: MixOptions) -> list[dict[str, int]]:
    shares = list(options.shares or [])
    if len(shares) != len(sources):
        raise DataDirError(f"{len(shares)} shares are given for {len(sources)} sources")
    there = [sum(_measure(n, options.by) for n in source.values()) for source in sources]
    if empty := [str(i + 1) for i, share in enumerate(shares) if share and not there[i]]:
        raise DataDirError(f"source {', '.join(empty)} has a share, but no utterance")
    shares = [share / sum(shares) for share in shares]
    if options.replacement:
        whole = float(sum(amount for amount, share in zip(there, shares, strict=True) if share))
    else:
        whole = min(amount / share for amount, share in zip(there, shares, strict=True) if share)
    # What one unit of the whole is in samples: 1 by hours, the mean length by utterances.
    samples = sum(
        share * sum(source.values()) / amount
        for source, share, amount in zip(sources, shares, there, strict=True)
        if share
    )
    whole = min(whole, _limit(options) / samples)
    return [
        _take(source, whole * share, options.replacement, options) if share else {}
        for source, share in zip(sources, shares, strict=True)
    ]


def _take(
    source: Mapping[str, int], room: float, again: bool, options: MixOptions
) -> dict[str, int]:
    """Utterances in an order of their own until the room is full, in several rounds if asked to."""
    order = sorted(source, key=lambda key: sha256(f"{options.seed}/{key}".encode()).digest())
    by = options.by if options.shares is not None else "hours"
    room += 1e-6 * room  # the sum of shares that fill it exactly
    taken: dict[str, int] = {}
    for key in _rounds(order) if again else order:
        room -= _measure(source[key], by)
        if room < 0:  # shorter ones that come later would fit, but not into every larger set
            break
        taken[key] = taken.get(key, 0) + 1
    return taken


def _rounds(order: Sequence[str]) -> Iterator[str]:
    while order:
        yield from order


def _measure(samples: int, by: str) -> int:
    return samples if by == "hours" else 1


def _limit(options: MixOptions) -> float:
    """In samples."""
    return float("inf") if options.max_hours is None else options.max_hours * 3600 * SAMPLE_RATE
