"""When what was said: labelled spans of recordings, from CTM files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_moe.data.extras import Word
from espnet_moe.data.files import read_lines
from espnet_moe.errors import UserError

PHONES = "phones.ctm"


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a recording and what is there.

    Attributes:
        start: Seconds from the beginning of the audio.
        end: Seconds.
        label: A word, a phone, or one of its features.
        type: What the label belongs to: the phone, where the label is its feature.
    """

    start: float
    end: float
    label: str
    type: str


def read_ctm(path: Path) -> dict[str, tuple[Word, ...]]:
    """Read NIST's CTM: lines ``utt_id channel start duration label``, seconds.

    Lines of an utterance may stand in any order; comments (``;;``) are left out.

    Raises:
        UserError: For a file that is missing or a line of another layout.
    """
    found: dict[str, list[Word]] = {}
    for number, line in read_lines(path):
        if line.startswith(";;"):
            continue
        words = line.split()
        try:
            key, _, start, duration, label, *_ = words
            found.setdefault(key, []).append(Word(float(start), float(duration), label))
        except ValueError:
            raise UserError(
                f"{path}:{number} is not 'utt_id channel start duration label'"
            ) from None
    return {key: tuple(sorted(own, key=lambda w: w.start)) for key, own in found.items()}


def spans_of(timings: Mapping[str, Sequence[Word]]) -> dict[str, list[Span]]:
    """Spans whose labels are the words (or phones) themselves."""
    return {
        key: [Span(w.start, w.end, w.word, w.word) for w in own if w.duration > 0]
        for key, own in timings.items()
    }
