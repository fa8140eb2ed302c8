"""Utterances that are decoded in parts, and how the parts' results become the utterance's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from espnet_moe.data.utterance import SAMPLE_RATE
from espnet_moe.decoding.search import Hypothesis
from espnet_moe.decoding.windows import windows

_WORST_LAST = ("eos", "length", "repetition")


@dataclass
class Part:
    """A stretch of an utterance that is encoded and decoded as one row.

    Attributes:
        owner: Number of the utterance in its batch.
        start: First sample in the utterance.
        speech: ``(samples,)`` at 16 kHz.
        language: Of the prompt: the true one until a router decides.
        expert: The expert that was chosen beforehand; empty where none was.
        record: What is told of the route.
        hypothesis: The result.
        text: Transcript.
    """

    owner: int
    start: int
    speech: npt.NDArray[np.float32]
    language: str
    expert: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    hypothesis: Hypothesis | None = None
    text: str = ""

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.speech) / SAMPLE_RATE

    @property
    def span(self) -> tuple[float, float]:
        """Start and end in the utterance, seconds."""
        start = self.start / SAMPLE_RATE
        return round(start, 2), round(start + self.seconds, 2)


def whole_or_windows(
    speech: Sequence[npt.NDArray[np.float32]],
    languages: Sequence[str],
    longest: float,
    margin: float,
) -> list[Part]:
    """A part an utterance; several where it is longer than ``longest`` seconds."""
    found = []
    for owner, (x, language) in enumerate(zip(speech, languages, strict=True)):
        fits = len(x) <= longest * SAMPLE_RATE
        for a, b in [(0, len(x))] if fits else windows(x, longest - margin):
            found.append(Part(owner, a, x[a:b], language))
    return found


def groups(parts: Sequence[Part], size: int) -> Iterator[list[Part]]:
    """At most ``size`` parts at a time, alike in duration where there are several groups."""
    if len(parts) > size:
        parts = sorted(parts, key=lambda p: -len(p.speech))
    for i in range(0, len(parts), size):
        yield list(parts[i : i + size])


def padded(parts: Sequence[Part], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms ``(batch, samples)`` with zeros at their ends, and their lengths ``(batch,)``."""
    lengths = torch.tensor([len(p.speech) for p in parts], device=device)
    speech = torch.zeros(len(parts), max(len(p.speech) for p in parts))
    for row, part in zip(speech, parts, strict=True):
        row[: len(part.speech)] = torch.from_numpy(part.speech)
    return speech.to(device), lengths


def join_hypotheses(found: Sequence[Hypothesis]) -> Hypothesis:
    """One hypothesis of several in turn.

    Tokens stand one behind the other, the score is the mean weighted by them (the end token
    included), the stop is the worst.
    """
    if len(found) == 1:
        return found[0]
    weights = [len(h.tokens) + 1 for h in found]
    score = sum(h.score * w for h, w in zip(found, weights, strict=True)) / sum(weights)
    stop = max((h.stop for h in found), key=_WORST_LAST.index)
    tokens = [t for h in found for t in h.tokens]
    return Hypothesis(tokens, score, stop, max(h.steps for h in found))


def join_records(parts: Sequence[Part]) -> dict[str, Any]:
    """One route of several in turn: means by duration, segments one behind the other."""
    if len(parts) == 1:
        return parts[0].record
    total = sum(p.seconds for p in parts)
    joined: dict[str, Any] = {}
    for what in ("languages", "experts", "gates"):
        tables: list[tuple[float, Mapping[str, float]]]
        tables = [(p.seconds / total, p.record[what]) for p in parts if what in p.record]
        if tables:
            names = tables[0][1]
            joined[what] = {n: round(sum(w * t[n] for w, t in tables), 4) for n in names}
    runs: list[list[Any]] = []
    for part in parts:
        start, end = part.span
        inside = part.record.get("segments", [[0.0, round(end - start, 2), part.language]])
        for a, b, language in inside:
            if runs and runs[-1][2] == language:
                runs[-1][1] = round(start + b, 2)
            else:
                runs.append([round(start + a, 2), round(start + b, 2), language])
    return {**joined, "segments": runs}
