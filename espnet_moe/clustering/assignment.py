"""From memberships of clusters, or languages, to experts.

Everything here is a function of arrays; what reads and writes files is in
``espnet_moe.clustering.expert_sets``.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from espnet_moe.config import ConfigError
from espnet_moe.errors import UserError

NOISE_CHOICES = ("drop", "nearest", "expert")
NOISE_EXPERT = "noise"

_SUM_TOLERANCE = 1e-3  # of a row of memberships
_MAX_PASSES = 10  # over the speakers; three usually do

logger = logging.getLogger(__name__)


class AssignmentError(UserError):
    """Utterances that cannot be given to experts as asked."""


@dataclass(frozen=True)
class SplitOptions:
    """How training data is shared between the training of experts and joint training.

    Attributes:
        fraction: Of each expert's audio that trains the expert alone; the rest is for joint
            training. Whole speakers. 1 gives everything to both.
        seed: Of the choice of speakers; also of reduction and clusterer where these have a seed and
            their own options do not say.
    """

    fraction: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if problems := self._problems():
            raise ConfigError(f"assignment options: {'; '.join(problems)}")

    def _problems(self) -> list[str]:
        problems = []
        if not 0 < self.fraction <= 1:
            problems.append(f"fraction is above 0 and at most 1, not {self.fraction}")
        if self.seed < 0:
            problems.append(f"seed is not negative, but {self.seed} is")
        return problems


@dataclass(frozen=True)
class AssignOptions(SplitOptions):
    """How clusters become experts.

    Attributes:
        count: Number of clusters; 0 leaves it to ``candidates`` or to the clusterer.
        candidates: Numbers of clusters to choose from, by silhouette.
        reduction: Options of the reduction of dimensions before clustering.
        clusterer: Options of the clusterer.
        hard: Each utterance belongs to its strongest expert alone.
        top_k: With ``hard: false``: to so many experts at most, weighted; 0 sets no limit.
        min_weight: With ``hard: false``: smaller weights become 0 (the strongest never does).
        min_size: Training utterances; a smaller cluster is merged into the nearest.
        noise: What becomes of utterances in no cluster. ``drop`` leaves them out of training (dev
            and test utterances go to the nearest cluster, as every utterance is to be decoded),
            ``nearest`` gives them to the nearest cluster, ``expert`` makes them one of their own.
    """

    count: int = 0
    candidates: tuple[int, ...] = ()
    reduction: Mapping[str, Any] = field(default_factory=dict)
    clusterer: Mapping[str, Any] = field(default_factory=dict)
    hard: bool = True
    top_k: int = 0
    min_weight: float = 0.0
    min_size: int = 1
    noise: str = "nearest"

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if self.count and self.count < 2:
            problems.append(f"count is at least 2 (or 0, to leave it open), not {self.count}")
        if not all(isinstance(c, int) and not isinstance(c, bool) for c in self.candidates):
            problems.append(f"candidates are numbers of clusters, not {list(self.candidates)}")
        elif any(candidate < 2 for candidate in self.candidates):
            problems.append(f"candidates are at least 2 each, not {list(self.candidates)}")
        if self.count and self.candidates:
            problems.append("count and candidates exclude each other; give one of them")
        for name in ("reduction", "clusterer"):
            if not isinstance(getattr(self, name), Mapping):
                problems.append(f"{name} holds keys and values, not {getattr(self, name)!r}")
        if isinstance(self.clusterer, Mapping) and "count" in self.clusterer:
            problems.append("clusterer: count stands beside clusterer, not in it")
        for name in ("top_k", "min_weight"):
            if self.hard and getattr(self, name):
                problems.append(f"{name} needs hard: false")
        if self.top_k < 0:
            problems.append(f"top_k is not negative, but {self.top_k} is")
        if not 0 <= self.min_weight < 1:
            problems.append(f"min_weight is from 0 to below 1, not {self.min_weight}")
        if self.min_size < 1:
            problems.append(f"min_size is at least 1, not {self.min_size}")
        if self.noise not in NOISE_CHOICES:
            problems.append(f"noise is one of {', '.join(NOISE_CHOICES)}, not '{self.noise}'")
        return problems


@dataclass(frozen=True)
class Assignment:
    """Experts, and how much each utterance belongs to them.

    Attributes:
        experts: Names.
        weights: ``(n, E)``; rows sum to 1.
        dropped: ``(n,)``; training utterances that no training set is to hold.
        notes: What was merged, moved or dropped, in words.
    """

    experts: tuple[str, ...]
    weights: np.ndarray
    dropped: np.ndarray
    notes: tuple[str, ...] = ()


def assign(
    ids: Sequence[str],
    languages: Sequence[str],
    memberships: np.ndarray | None,
    options: SplitOptions,
    values: np.ndarray | None = None,
    train: np.ndarray | None = None,
) -> Assignment:
    """Make experts of clusters, or of languages.

    Args:
        ids: Utterance ids, ``n`` of them.
        languages: Language of each utterance.
        memberships: ``(n, C)``, rows that sum to 1; a row of zeros is noise. ``None``: an expert
            for each language, named by its code, in the order of first appearance.
        options: ``AssignOptions`` where there are memberships.
        values: ``(n, dim)``, what was clustered; needed to tell which cluster is nearest.
        train: ``(n,)``, the training utterances, by which sizes and centroids go; ``None``: all.

    Returns:
        Experts named by language, or ``c0``, ``c1`` … in the order of the clusters, then ``noise``.

    Raises:
        AssignmentError: When arrays do not fit together, memberships are not as above, a language
            or expert has no training utterance, fewer than two experts are left, or ``top_k`` is
            above their number.
    """
    trained = np.ones(len(ids), dtype=bool) if train is None else np.asarray(train, dtype=bool)
    _check_shapes(ids, languages, memberships, values, trained)
    if memberships is None:
        return _by_language(languages, trained)
    if not isinstance(options, AssignOptions):
        raise TypeError(f"clusters need AssignOptions, not {type(options).__name__}")
    notes: list[str] = []
    weights, centroids = _merge(
        np.array(memberships, dtype=np.float64), values, trained, options.min_size, notes
    )
    noise = np.logical_not(np.any(weights, axis=1))
    names = [f"c{number}" for number in range(weights.shape[1])]
    dropped = np.zeros(len(ids), dtype=bool)
    if noise.any():
        weights, dropped = _place_noise(weights, noise, values, centroids, trained, options, notes)
        names += [NOISE_EXPERT] * (weights.shape[1] - len(names))
    if len(names) < 2:
        raise AssignmentError(
            f"a single expert is left (min_size {options.min_size}): lower min_size, or ask for "
            "more clusters"
        )
    weights = _sparse(weights, options)
    _check_trained(names, weights[trained & ~dropped])
    notes.insert(0, f"{len(names)} experts: {' '.join(names)}")
    for note in notes:
        logger.info("%s", note)
    return Assignment(tuple(names), weights, dropped, tuple(notes))


def speakers_for_experts(audio: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draw whole speakers, so that of every expert's audio about a fraction is drawn.

    In random order, speakers are drawn or put back where that brings the experts' shares nearer to
    the fraction, until none does. Then every expert has at least one speaker drawn and, where it
    has two or more and no other expert loses its only one, one that is not.

    Args:
        audio: ``(speakers, E)``: seconds of each speaker that belong to each expert; every expert
            has some.
        fraction: Above 0; 1 draws all.
        seed: Of the order.

    Returns:
        ``(speakers,)``, true where drawn.
    """
    if fraction >= 1:
        return np.ones(len(audio), dtype=bool)
    has, share = audio > 0, audio / audio.sum(axis=0)

    def cost(taken: np.ndarray) -> float:
        """How far the shares are from the fraction: squares, in sum over the experts."""
        return float(((share[taken].sum(axis=0) - fraction) ** 2).sum())

    def flipped(taken: np.ndarray, speaker: int) -> np.ndarray:
        other = taken.copy()
        other[speaker] = not taken[speaker]
        return other

    taken, far = np.zeros(len(audio), dtype=bool), np.full(audio.shape[1], -fraction)
    order = np.random.default_rng(seed).permutation(len(audio)).tolist()
    for _ in range(_MAX_PASSES):
        before = taken.copy()
        for speaker in order:
            other = far - share[speaker] if taken[speaker] else far + share[speaker]
            if other @ other < far @ far - _SUM_TOLERANCE**2:
                taken[speaker], far = not taken[speaker], other
        if (taken == before).all():
            break
    for expert in range(audio.shape[1]):
        own = np.flatnonzero(has[:, expert]).tolist()
        if not taken[own].any():
            options = [flipped(taken, speaker) for speaker in own]
            left = [int(has[~option].any(axis=0).sum()) for option in options]
            taken = min(zip(options, left, strict=True), key=lambda o: (-o[1], cost(o[0])))[0]
    for expert in range(audio.shape[1]):
        own = np.flatnonzero(has[:, expert]).tolist()
        if taken[own].all():
            options = [flipped(taken, speaker) for speaker in own]
            options = [option for option in options if has[option].any(axis=0).all()]
            taken = min(options, key=cost, default=taken)
    return taken


def _check_shapes(
    ids: Sequence[str],
    languages: Sequence[str],
    memberships: np.ndarray | None,
    values: np.ndarray | None,
    train: np.ndarray,
) -> None:
    rows = {"languages": len(languages), "train": len(train)}
    rows |= {} if values is None else {"values": len(values)}
    rows |= {} if memberships is None else {"memberships": len(memberships)}
    problems = [f"{len(ids)} ids, but {n} {name}" for name, n in rows.items() if n != len(ids)]
    if memberships is not None:
        sums = memberships.sum(axis=1)
        wrong = ~((np.abs(sums - 1) < _SUM_TOLERANCE) | (sums == 0)) | (memberships < 0).any(axis=1)
        if wrong.any() and not problems:
            named = ", ".join(ids[i] for i in np.flatnonzero(wrong)[:5])
            problems.append(
                f"memberships of {int(wrong.sum())} utterances are negative or do not sum to 1 "
                f"(nor to 0, which is noise): {named}"
            )
    if problems:
        raise AssignmentError("; ".join(problems))


def _by_language(languages: Sequence[str], train: np.ndarray) -> Assignment:
    spoken = np.asarray(languages)
    names = list(dict.fromkeys([*spoken[train].tolist(), *spoken.tolist()]))
    weights = (spoken[:, None] == np.array(names)).astype(np.float64)
    _check_trained(names, weights[train])
    notes = (f"{len(names)} experts: {' '.join(names)}",)
    logger.info("%s", notes[0])
    return Assignment(tuple(names), weights, np.zeros(len(spoken), dtype=bool), notes)


def _check_trained(names: Sequence[str], weights: np.ndarray) -> None:
    if empty := [name for name, has in zip(names, weights.sum(axis=0) > 0, strict=True) if not has]:
        raise AssignmentError(
            f"no training utterance for {', '.join(empty)}: give training data of it, or leave it "
            "out of all sets"
        )


def _merge(
    weights: np.ndarray,
    values: np.ndarray | None,
    train: np.ndarray,
    min_size: int,
    notes: list[str],
) -> tuple[np.ndarray, np.ndarray | None]:
    """Merge clusters below the minimum size, the smallest first, into the nearest.

    Returns:
        Memberships ``(n, C')``, and centroids ``(C', dim)`` where there are values.
    """
    numbers = list(range(weights.shape[1]))  # as the clusterer counts them
    while True:
        trained = weights[train]
        centroids = None
        if values is not None and len(numbers):
            # A cluster without any weight in training has no centroid, and is merged at once.
            mass = np.maximum(trained.sum(axis=0), np.finfo(float).tiny)
            centroids = (trained.T @ values[train]) / mass[:, None]
        clear = trained[trained.any(axis=1)]
        sizes = np.bincount(clear.argmax(axis=1), minlength=len(numbers))
        if len(numbers) < 2 or sizes.min() >= min_size:
            return weights, centroids
        small = int(sizes.argmin())
        others = [c for c in range(len(numbers)) if c != small]
        if centroids is None:
            raise AssignmentError(
                f"cluster {numbers[small]} has {sizes[small]} training utterances, fewer than "
                f"min_size {min_size}: to merge it into the nearest needs what was clustered"
            )
        nearest = _nearest(centroids[[small]], centroids[others])[0]
        notes.append(
            f"cluster {numbers[small]} ({sizes[small]} training utterances, fewer than {min_size}) "
            f"merged into cluster {numbers[others[nearest]]}"
        )
        weights[:, others[nearest]] += weights[:, small]
        weights = weights[:, others]
        del numbers[small]


def _place_noise(
    weights: np.ndarray,
    noise: np.ndarray,
    values: np.ndarray | None,
    centroids: np.ndarray | None,
    train: np.ndarray,
    options: AssignOptions,
    notes: list[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Give weights to rows that have none; see ``AssignOptions.noise``.

    Returns:
        Weights ``(n, C)`` or, with an expert for noise, ``(n, C + 1)``; and what is dropped,
        ``(n,)``.
    """
    count = int((noise & train).sum())
    said = f"noise: {count} training utterances, {int(noise.sum()) - count} others"
    if options.noise == "expert" and count >= options.min_size:
        notes.append(f"{said}; an expert of their own")
        return np.hstack([weights, noise[:, None].astype(np.float64)]), np.zeros_like(noise)
    if options.noise == "expert":
        said += f", too few for an expert of their own (min_size {options.min_size})"
    if values is None or centroids is None:
        raise AssignmentError(f"{said}: to find the nearest clusters needs what was clustered")
    weights[noise, _nearest(values[noise], centroids)] = 1
    if options.noise == "drop":
        notes.append(f"{said}; dropped from training, the others to the nearest cluster")
        return weights, noise & train
    notes.append(f"{said}; to the nearest cluster")
    return weights, np.zeros_like(noise)


def _nearest(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index of the nearest centroid of each row, ``(m,)``."""
    return np.stack([((x - c) ** 2).sum(axis=1) for c in centroids], axis=1).argmin(axis=1)


def _sparse(weights: np.ndarray, options: AssignOptions) -> np.ndarray:
    """Keep the strongest weight of each row, or the strongest ones, scaled to sum to 1."""
    count = weights.shape[1]
    if options.top_k > count:
        raise AssignmentError(f"top_k is {options.top_k}, but there are {count} experts only")
    keep = 1 if options.hard else options.top_k or count
    ranks = np.argsort(np.argsort(-weights, axis=1, kind="stable"), axis=1)
    kept = np.where((ranks < keep) & ((weights >= options.min_weight) | (ranks == 0)), weights, 0)
    return kept / kept.sum(axis=1, keepdims=True)
