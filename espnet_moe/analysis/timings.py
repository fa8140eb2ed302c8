"""When what was said: labelled spans of recordings, from CTM files and TextGrids."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_moe.analysis.textgrid import read_textgrid
from espnet_moe.data.extras import Word
from espnet_moe.data.files import listed, read_lines
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


def read_given(
    paths: Iterable[Path], tiers: Collection[str], utt_ids: Collection[str]
) -> dict[str, tuple[Word, ...]]:
    """Read timings that a user has.

    Args:
        paths: CTM files; or folders of TextGrids, at any depth, each called by its utterance's id,
            as the Montreal Forced Aligner writes them.
        tiers: What a TextGrid's tier may be called, in small letters; a speaker's name may stand
            before it (``anna - phones``).
        utt_ids: Of the data; what is there of other utterances is left out.

    Raises:
        UserError: For what cannot be read, a TextGrid without such a tier or with several, and
            paths that have nothing of the data.
    """
    found: dict[str, tuple[Word, ...]] = {}
    for path in paths:
        if path.is_dir():
            grids = {p.stem: p for p in sorted(path.rglob("*")) if p.suffix.lower() == ".textgrid"}
            own = {key: _tier(grids[key], tiers) for key in grids.keys() & set(utt_ids)}
        else:
            own = {key: words for key, words in read_ctm(path).items() if key in utt_ids}
        if not own:
            raise UserError(
                f"{path} has no times of the data's utterances: a CTM's first column and the names "
                f"of TextGrids are their ids, such as {listed(sorted(utt_ids)[:1])}"
            )
        found |= {key: words for key, words in own.items() if words}
    return found


def _tier(path: Path, names: Collection[str]) -> tuple[Word, ...]:
    grid = read_textgrid(path)
    of_name = [tier for tier in grid if tier.lower().rpartition(" - ")[2].strip() in names]
    if len(of_name) != 1:
        raise UserError(
            f"TextGrid {path} has {len(of_name)} tiers called {' or '.join(sorted(names))}, and "
            f"should have one; its tiers of intervals are {', '.join(grid) or 'none'}"
        )
    return grid[of_name[0]]


def spans_of(timings: Mapping[str, Sequence[Word]]) -> dict[str, list[Span]]:
    """Spans whose labels are the words (or phones) themselves."""
    return {
        key: [Span(w.start, w.end, w.word, w.word) for w in own if w.duration > 0]
        for key, own in timings.items()
    }
