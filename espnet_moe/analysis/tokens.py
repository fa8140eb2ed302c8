"""Labelled spans of speech and what encoder layers make of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from espnet_moe.analysis.passes import Batch, Subject, hidden_layers
from espnet_moe.analysis.spelling import pronounce
from espnet_moe.analysis.timings import Span
from espnet_moe.data.extras import Word
from espnet_moe.data.utterance import SAMPLE_RATE

ONSET = 0.06  # seconds of a word that are taken for its first phone


@dataclass(frozen=True)
class Tokens:
    """Labelled spans and their representations.

    Attributes:
        spans: In the order of the rows.
        utterances: Number of the utterance of each, ``(tokens,)``.
        speakers: ``(tokens,)``.
        values: By condition and layer ``(tokens, dim)``: means over the spans' frames.
    """

    spans: Sequence[Span]
    utterances: np.ndarray
    speakers: np.ndarray
    values: Mapping[tuple[str, str], np.ndarray]


def collect(
    subject: Subject,
    batches: Sequence[Batch],
    spans: Mapping[str, Sequence[Span]],
    conditions: Sequence[str],
    layers: Sequence[int],
) -> Tokens:
    """Represent spans by the means of their frames, in every layer and condition.

    A span has the frames whose middles lie in it, or the one that its own middle lies in.
    """
    step = subject.backbone.frame_samples / SAMPLE_RATE
    values: dict[tuple[str, str], list[np.ndarray]] = {}
    found: list[Span] = []
    owners: list[int] = []
    speakers: list[str] = []
    start = 0
    for batch in batches:
        places: list[tuple[int, int, int]] = []
        lengths: np.ndarray | None = None
        for condition in conditions:
            gates = subject.gates(condition, len(batch.utterances))
            for name, state in hidden_layers(subject, batch, gates, layers).items():
                if lengths is None:
                    lengths = state.spoken.cpu().numpy()
                    for row, utt in enumerate(batch.utterances):
                        for span in spans.get(utt.utt_id, ()):
                            first, last = _frames(span, step, int(lengths[row]))
                            places.append((row, first, last))
                            found.append(span)
                            owners.append(start + row)
                            speakers.append(utt.speaker)
                # Sums up to each frame: a span's mean is a difference of two.
                sums = np.cumsum(state.hidden.double().cpu().numpy(), axis=1)
                sums = np.pad(sums, ((0, 0), (1, 0), (0, 0)))
                means = [(sums[r, b] - sums[r, a]) / (b - a) for r, a, b in places]
                if means:
                    values.setdefault((condition, name), []).append(np.stack(means))
        start += len(batch.utterances)
    return Tokens(
        found,
        np.array(owners),
        np.array(speakers),
        {key: np.concatenate(parts) for key, parts in values.items()},
    )


def _frames(span: Span, step: float, count: int) -> tuple[int, int]:
    """First and behind-the-last frame of a span."""
    first, last = round(span.start / step), round(span.end / step)
    if last <= first:
        first = int((span.start + span.end) / 2 / step)
        last = first + 1
    first = min(first, count - 1)
    return first, max(first + 1, min(last, count))


def onsets(timings: Mapping[str, Sequence[Word]], language: str) -> dict[str, list[Span]]:
    """The beginnings of words with their first phone, where spelling tells it."""
    found: dict[str, list[Span]] = {}
    for key, words in timings.items():
        for word in words:
            phones = pronounce(word.word, language)
            if phones:
                end = word.start + min(ONSET, word.duration)
                found.setdefault(key, []).append(Span(word.start, end, phones[0], phones[0]))
    return found


def frame_spans(spans: Mapping[str, Sequence[Span]], step: float) -> dict[str, list[Span]]:
    """Every frame of phones as a span of its own."""
    found: dict[str, list[Span]] = {}
    for key, own in spans.items():
        for span in own:
            first, last = _frames(span, step, 10**9)
            found.setdefault(key, []).extend(
                Span(i * step, (i + 1) * step, span.label, span.type) for i in range(first, last)
            )
    return found
