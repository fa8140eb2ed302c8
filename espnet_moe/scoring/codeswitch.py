"""Code-switched sets: which language was decided for when, against which was spoken.

- **Frame error**: frames of 20 ms, by the language at their middle; wrong or undecided ones in
  percent of all.
- **Switches**: a true switch to a language is detected by a change of the decided language to it.
  A change counts from the middle of the segment before the switch until the next switch; an early
  one only if the decision still stands at the switch. ``offset`` is its time less that of the
  switch, ``latency`` the offset where that is positive and 0 where the change came early.
- **Missed** are switches without such a change, **false** are changes that detect no switch.

A system that decides once an utterance has one segment: it misses every switch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from espnet_moe.data.extras import Segment
from espnet_moe.scoring.error_rates import percent
from espnet_moe.scoring.folders import ALL, MIXED, Decoded, References
from espnet_moe.scoring.routing import route_of
from espnet_moe.scoring.rows import Row, percentile
from espnet_moe.scoring.systems import ORACLE, PARTS, sibling

FRAME = 0.02  # seconds


@dataclass
class Switches:
    """Switches and changes of utterances, counted."""

    true: int = 0
    false: int = 0
    offsets: list[float] = field(default_factory=list)  # seconds, of the detected ones
    frames: int = 0
    wrong_frames: int = 0

    def add(self, truth: Sequence[Segment], decided: Sequence[Segment]) -> None:
        """Count one utterance.

        Args:
            truth: The languages spoken, without gaps.
            decided: The languages decided for.
        """
        spoken, heard = merged(truth), merged(decided)
        wrong, frames = frame_errors(spoken, heard)
        offsets = detections(spoken, heard)
        self.wrong_frames += wrong
        self.frames += frames
        self.true += len(spoken) - 1
        self.offsets += offsets
        self.false += len(heard) - 1 - len(offsets)

    def metrics(self) -> Row:
        """Return the figures: percent, counts and seconds.

        ``latency_p50`` and ``latency_p95`` are of the detected switches; ``latency_p50_all`` counts
        a missed one as never, and is ``None`` where half or more were missed.
        """
        latencies = [max(0.0, offset) for offset in self.offsets]
        everything = np.full(self.true, np.inf)
        everything[: len(latencies)] = latencies
        middle = float(np.median(everything)) if self.true else float("inf")
        return {
            "frame_error": round(percent(self.wrong_frames, self.frames), 2),
            "switches": self.true,
            "missed": self.true - len(self.offsets),
            "false_switches": self.false,
            "latency_p50": percentile(latencies, 50),
            "latency_p95": percentile(latencies, 95),
            "latency_p50_all": round(middle, 2) if np.isfinite(middle) else None,
            "offset_p50": percentile(self.offsets, 50),
        }


def merged(segments: Sequence[Segment]) -> list[Segment]:
    """Join neighbours of one language."""
    joined: list[Segment] = []
    for segment in segments:
        if joined and joined[-1].language == segment.language:
            joined[-1] = Segment(joined[-1].start, segment.end, segment.language)
        else:
            joined.append(segment)
    return joined


def frame_errors(truth: Sequence[Segment], decided: Sequence[Segment]) -> tuple[int, int]:
    """Count the wrong and all frames of an utterance; an undecided frame is wrong."""
    frames = max(1, round(truth[-1].end / FRAME))
    times = (np.arange(frames) + 0.5) * FRAME
    return int((_at(truth, times) != _at(decided, times)).sum()), frames


def _at(segments: Sequence[Segment], times: np.ndarray) -> np.ndarray:
    languages = np.full(len(times), "", dtype=object)
    for segment in segments:
        languages[(times >= segment.start) & (times < segment.end)] = segment.language
    return languages


def detections(truth: Sequence[Segment], decided: Sequence[Segment]) -> list[float]:
    """Return the offset in seconds of each switch that was detected.

    Args:
        truth: The languages spoken, neighbours differing.
        decided: The languages decided for, neighbours differing.
    """
    offsets = []
    for before, after in pairwise(truth):
        switch, earliest = after.start, (before.start + before.end) / 2
        for change in decided[1:]:
            stands = change.start >= switch or change.end > switch
            inside = earliest <= change.start < after.end
            if change.language == after.language and inside and stands:
                offsets.append(change.start - switch)
                break
    return offsets


def codeswitch_row(references: References, decoded: Decoded) -> Row | None:
    """Return the figures of a system for a code-switched set.

    Args:
        references: With segments.
        decoded: With a ``route`` in its statistics; a system without one was told the languages,
            or knows none.

    Returns:
        See ``Switches.metrics``; ``None`` for a system without a router.
    """
    if not references.segments or not decoded.stats:
        return None
    switches = Switches()
    for truth, entry in zip(references.segments, decoded.stats, strict=True):
        decided = _decided(entry, truth[-1].end)
        if decided is None:
            return None
        switches.add(truth, decided)
    return switches.metrics()


def _decided(entry: dict[str, Any], end: float) -> list[Segment] | None:
    route = route_of(entry)
    if route is None:
        return None
    segments = route.get("segments")
    if segments:
        last = float(segments[-1][1])
        # The encoder's last frame may end a little before the audio does.
        stops = [float(stop) for _, stop, _ in segments[:-1]] + [end if end - last < 0.05 else last]
        return [
            Segment(float(start), stop, str(name))
            for (start, _, name), stop in zip(segments, stops, strict=True)
        ]
    return [Segment(0.0, end, str(entry.get("language", "")))]


def add_degradation(found: Sequence[Row], rows: Sequence[Row]) -> None:
    """Fill in how much worse a code-switched set is than its parts decoded singly.

    Args:
        found: Rows of code-switched sets, changed in place: ``wer``, and ``parts``, which holds
            by ``same`` system and by the ``oracle`` the ``system``, its ``wer`` and the
            ``relative`` change from it to the set's WER in percent.
        rows: The rows of ``results.json``.
    """
    table = {(r["system"], r["inference_tag"], r["set"], r["language"]): r["wer"] for r in rows}
    for row in found:
        tag, name = row["inference_tag"], row["set"]
        row["wer"] = table.get((row["system"], tag, name, MIXED))
        row["parts"] = {}
        for which, system in (("same", row["system"]), ("oracle", sibling(row, ORACLE))):
            wer = table.get((system, tag, name + PARTS, ALL))
            if wer is None:
                continue
            relative = None
            if wer > 0 and row["wer"] is not None:
                relative = round(100 * (row["wer"] - wer) / wer, 2)
            row["parts"][which] = {"system": system, "wer": wer, "relative": relative}
