"""Settings of the routing decisions, and what a decision for a batch holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from espnet_moe.config import ConfigError
from espnet_moe.errors import UserError
from espnet_moe.experts.gates import Gates
from espnet_moe.routing.pooling import FRAME_SAMPLES, valid_frames
from espnet_moe.routing.smoothing import SmoothingOptions, segments

Segment = tuple[float, float, str]  # start, end (seconds), language


@dataclass(frozen=True)
class RoutingOptions:
    """How a router's logits become decisions; each system reads its own settings.

    Attributes:
        threshold: ``threshold``: posterior above which a decision is hard.
        k: ``topk``: experts that are mixed.
        temperature: ``soft``, ``threshold``, ``topk``: of the mixture's weights; below 1 sharper.
        tree: ``hierarchical``: YAML file of the family tree, of the experts or of the languages.
        expert: ``fixed``: the expert that takes everything.
        allowed: Languages that may be chosen, and experts where these are the languages; all of
            them where empty.
        smoothing: ``frame``, ``segment``: ``none``, ``median`` or ``viterbi``.
        smoothing_window: Seconds of the median's window.
        switch_penalty: What a change of language costs on a Viterbi path, in nats.
        frame_gates: ``frame``: ``hard`` for the expert of the smoothed label, ``soft`` for the
            posteriors.
        smoothing_resolution: Seconds between the moments at which a Viterbi path may change.
        min_segment: ``segment``: seconds; shorter segments join their longer neighbour.
        snap: ``segment``: seconds that a cut may move to a quiet point.
        pause_depth: ``segment`` with an utterance-level router: how much quieter than the speech
            around it a pause is at which the utterance may be cut, dB.
        pause_spacing: Likewise: seconds between two such cuts, at least.
        pause_penalty: Likewise: what a change of language at a pause costs, in nats, where a second
            of speech counts once.
        window_margin: Seconds by which the windows of a long recording stay under the backbone's
            limit.
    """

    threshold: float = 0.8
    k: int = 2
    temperature: float = 1.0
    tree: str = ""
    expert: str = ""
    allowed: tuple[str, ...] = ()
    smoothing: str = "viterbi"
    smoothing_window: float = 0.5
    switch_penalty: float = 10.0
    smoothing_resolution: float = 0.02
    frame_gates: str = "hard"
    min_segment: float = 0.4
    snap: float = 0.3
    pause_depth: float = 12.0
    pause_spacing: float = 0.8
    pause_penalty: float = 4.0
    window_margin: float = 0.5

    def __post_init__(self) -> None:
        wrong = []
        if not 0 <= self.threshold <= 1:
            wrong.append(f"threshold is in [0, 1], not {self.threshold}")
        if not self.temperature > 0:
            wrong.append(f"temperature is above 0, not {self.temperature}")
        if self.k < 1:
            wrong.append(f"k is at least 1, not {self.k}")
        if self.frame_gates not in ("hard", "soft"):
            wrong.append(f"frame_gates is hard or soft, not '{self.frame_gates}'")
        for name in ("pause_depth", "pause_penalty"):
            if not getattr(self, name) >= 0:
                wrong.append(f"{name} is at least 0, not {getattr(self, name)}")
        for name in ("min_segment", "snap", "window_margin", "pause_spacing"):
            if not 0 <= getattr(self, name) <= 10:
                wrong.append(f"{name} is in 0..10 seconds, not {getattr(self, name)}")
        if any(not isinstance(code, str) or not code.strip() for code in self.allowed):
            wrong.append(f"allowed is a list of language codes, not {list(self.allowed)}")
        try:
            self.smoother()
        except UserError as error:
            wrong.append(str(error))
        if wrong:
            raise ConfigError(f"routing: {'; '.join(wrong)}")

    def smoother(self) -> SmoothingOptions:
        """The smoothing's share."""
        return SmoothingOptions(
            self.smoothing, self.smoothing_window, self.switch_penalty, self.smoothing_resolution
        )


@dataclass
class Route:
    """Decisions for a batch.

    Attributes:
        gates: Experts a row or frame; ``None`` for the backbone alone.
        languages: Of each row's prompt.
        first: Frame level: gates of the decoder's first step ``(batch, experts)``.
        expert_names: Names behind the last dimension of gates and ``experts``.
        experts: Posteriors ``(batch, experts)`` where a router decided.
        language_names: Names behind the last dimension of ``posteriors``.
        posteriors: Of the languages, ``(batch, languages)``.
        labels: Frame level: ``(batch, frames)`` smoothed language numbers.
        expert_logits: Frame level: ``(batch, frames, experts)``, restricted.
        lengths: ``(batch,)`` frames that hold speech.
        frame_samples: Samples from one frame to the next.
    """

    gates: Gates | None
    languages: list[str]
    first: torch.Tensor | None = None
    expert_names: tuple[str, ...] = ()
    experts: torch.Tensor | None = None
    language_names: tuple[str, ...] = ()
    posteriors: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    expert_logits: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    frame_samples: int = FRAME_SAMPLES

    def records(self) -> list[dict[str, Any]]:
        """What is told of every row's route; empty where no expert acts. Not for the hot path."""
        if self.gates is None:
            return [{} for _ in self.languages]
        weights = self.gates.weights
        if weights.dim() == 3 and self.lengths is not None:
            weights = frame_mean(weights, self.lengths)
        told = [("gates", self.expert_names, weights)]
        if self.experts is not None and self.posteriors is not None:
            told.insert(0, ("experts", self.expert_names, self.experts))
            told.insert(0, ("languages", self.language_names, self.posteriors))
        rows: list[dict[str, Any]] = [{} for _ in self.languages]
        for what, names, values in told:
            for row, numbers in zip(rows, values.tolist(), strict=True):
                row[what] = {n: round(v, 4) for n, v in zip(names, numbers, strict=True)}
        if self.labels is not None:
            for row, found in zip(rows, self.segments(), strict=True):
                row["segments"] = [list(segment) for segment in found]
        return rows

    def segments(self) -> list[list[Segment]]:
        """Runs of one language of every row (frame level)."""
        if self.labels is None or self.lengths is None:
            return [[] for _ in self.languages]
        labels, lengths = self.labels.cpu(), self.lengths.tolist()
        return [
            segments(row[: max(n, 1)], self.language_names, self.frame_samples)
            for row, n in zip(labels, lengths, strict=True)
        ]


@dataclass(frozen=True)
class Truth:
    """What is known of a batch beside its audio.

    Attributes:
        languages: True language of each row.
        memberships: Weight by expert of each row, where the experts are clusters.
    """

    languages: Sequence[str]
    memberships: Sequence[Mapping[str, float]] | None = None


def frame_mean(values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Mean over the valid frames: ``(batch, frames, n)`` → ``(batch, n)``."""
    valid = valid_frames(lengths.clamp(min=1), values.size(1)).unsqueeze(2)
    return values.masked_fill(~valid, 0.0).sum(1) / valid.sum(1)
