"""What a transcription returns."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from espnet_moe.data.utterance import SAMPLE_RATE
from espnet_moe.decoding.decoder import Decoded
from espnet_moe.decoding.parts import join_hypotheses


@dataclass(frozen=True)
class Segment:
    """A stretch that was decoded in one piece.

    Attributes:
        start: Seconds from the beginning of the recording.
        end: Likewise.
        text: Transcript.
        language: Of the decoder's prompt.
    """

    start: float
    end: float
    text: str
    language: str


@dataclass(frozen=True)
class Timings:
    """Where the time went.

    Attributes:
        audio: Duration of the recording, seconds.
        decoding: Seconds from the samples in memory to the text, of the batches it was in.
        encoder: Seconds in the encoder; the batch's, by its recordings.
        routing: Seconds in the router, likewise.
    """

    audio: float
    decoding: float
    encoder: float
    routing: float


@dataclass(frozen=True)
class Result:
    """A transcribed recording.

    Attributes:
        text: Transcript.
        tokens: Ids, without prompt and end.
        language: Of the decoder's prompt; where there are several, that which was heard longest.
        gates: Weight by expert, the mean over the recording; empty where none acted.
        score: Mean log-probability of a token, the end included (by the search's options).
        stop: Why the text ended: ``eos``, ``length`` (cut off) or ``repetition`` (a loop, cut).
        segments: The stretches that it was decoded in, in turn.
        timings: Where the time went.
    """

    text: str
    tokens: tuple[int, ...]
    language: str
    gates: Mapping[str, float]
    score: float
    stop: str
    segments: tuple[Segment, ...]
    timings: Timings

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return asdict(self)


def joined(windows: Sequence[tuple[int, int, Decoded]]) -> Result:
    """One result of a recording's windows in turn.

    Args:
        windows: First sample, number of samples, and what was decoded, of each.
    """
    segments = [
        Segment(
            round(start / SAMPLE_RATE + part.start, 2),
            round(start / SAMPLE_RATE + part.end, 2),
            part.text,
            part.language,
        )
        for start, _, decoded in windows
        for part in decoded.parts
    ]
    heard: dict[str, float] = {}
    for segment in segments:
        heard[segment.language] = heard.get(segment.language, 0.0) + segment.end - segment.start
    whole = join_hypotheses([decoded.hypothesis for _, _, decoded in windows])
    samples = sum(count for _, count, _ in windows)
    gates: dict[str, float] = {}
    for _, count, decoded in windows:
        for name, weight in decoded.route.get("gates", {}).items():
            gates[name] = gates.get(name, 0.0) + weight * count / samples
    return Result(
        " ".join(segment.text for segment in segments if segment.text),
        tuple(whole.tokens),
        max(heard, key=lambda language: heard[language]),
        {name: round(weight, 4) for name, weight in gates.items()},
        whole.score,
        whole.stop,
        tuple(segments),
        Timings(
            samples / SAMPLE_RATE,
            sum(decoded.latency for _, _, decoded in windows),
            sum(decoded.encode_seconds for _, _, decoded in windows),
            sum(decoded.route_seconds for _, _, decoded in windows),
        ),
    )
