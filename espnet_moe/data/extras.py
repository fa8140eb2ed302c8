"""Files that a data directory may hold beside Kaldi's own.

    text.alt       utt_id transcript that is right too     (as many lines an utterance as there are)
    text.ctc       utt_id what a CTC branch is to hear     (where not the text; <na>: nothing)
    words.ctm      utt_id 1 start duration word            (seconds; NIST's CTM, channel 1)
    phones.ctm     utt_id 1 start duration phone           (likewise; IPA)
    utt2segments   utt_id start:end:language …             (seconds; which language is spoken when)
    utt2experts    utt_id expert:weight …
    utt2weight     utt_id weight                           (of the utterance in the training loss)

The first five may leave utterances out; the last two list all, or are not there. Lines are sorted
by utterance id as ``LC_ALL=C sort`` does; an utterance's alternatives and segments keep their
order. A CTM may come from other tools: its comments (``;;``) are left out, its lines may stand in
any order (those of an utterance are put in that of their starts), and ``phones.ctm`` may have
utterances that the set has not.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from espnet_moe.data.files import DataDirError, listed, read_lines, write_text
from espnet_moe.data.utterance import Seconds

EXTRA_FILES = (
    *("text.alt", "text.ctc", "words.ctm", "phones.ctm"),
    *("utt2segments", "utt2experts", "utt2weight"),
)

NOTHING = "<na>"  # OWSM's symbol for a text that is not there

CTM_FILES = {"words.ctm": "timings", "phones.ctm": "phones"}  # attributes of Extras
_CHANNEL = "1"  # of a CTM: recordings are mono
_COMMENT = ";;"  # begins a line of a CTM
_TOLERANCE: Seconds = 0.005  # times are written in milliseconds


@dataclass(frozen=True, slots=True)
class Word:
    """A word's or a phone's place in its recording.

    Attributes:
        start: Seconds from the beginning of the audio.
        duration: Seconds.
        word: As the transcript has it; the symbol of a phone.
    """

    start: Seconds
    duration: Seconds
    word: str

    @property
    def end(self) -> Seconds:
        """Seconds from the beginning of the audio."""
        return self.start + self.duration


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of one language in a recording.

    Attributes:
        start: Seconds from the beginning of the audio.
        end: Seconds from the beginning of the audio.
        language: ISO 639-1 code.
    """

    start: Seconds
    end: Seconds
    language: str


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What the optional files say, by utterance id; empty where a file is not there.

    Attributes:
        alternatives: Transcripts that are right too (``text.alt``).
        ctc: What a CTC branch is to hear, where it is not the text (``text.ctc``);
            :data:`NOTHING`: the utterance has no part in its loss.
        timings: The words in their order (``words.ctm``).
        phones: The phones in their order (``phones.ctm``); there may be pauses between them.
        segments: The languages in their order, without gaps (``utt2segments``).
        experts: ``name:weight name:weight …`` as written (``utt2experts``).
        weights: In the training loss (``utt2weight``).
    """

    alternatives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ctc: Mapping[str, str] = field(default_factory=dict)
    timings: Mapping[str, tuple[Word, ...]] = field(default_factory=dict)
    phones: Mapping[str, tuple[Word, ...]] = field(default_factory=dict)
    segments: Mapping[str, tuple[Segment, ...]] = field(default_factory=dict)
    experts: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)


def join_extras(parts: Sequence[tuple[Extras, Collection[str]]]) -> Extras:
    """Join what several sets say.

    Args:
        parts: Of each set its extras and the ids of its utterances.

    Returns:
        The union. Where some sets have weights, the utterances of the others weigh 1.

    Raises:
        DataDirError: When some sets have experts and others have none.
    """
    parts = [(extras, ids) for extras, ids in parts if ids]
    joined = {
        each.name: {k: v for extras, _ in parts for k, v in getattr(extras, each.name).items()}
        for each in fields(Extras)
    }
    if joined["weights"]:
        joined["weights"] = {k: joined["weights"].get(k, 1.0) for _, ids in parts for k in ids}
    if joined["experts"] and not all(extras.experts for extras, _ in parts):
        raise DataDirError(
            "some sets have utt2experts and others have none; assign experts to all of them, or "
            "combine them first and assign then"
        )
    return Extras(**joined)


def write_extras(path: Path, extras: Extras, utt_ids: Iterable[str]) -> None:
    """Write the optional files into a data directory, and remove those with nothing to say.

    Args:
        path: The folder.
        extras: What to write.
        utt_ids: Utterances of the set, in any order; what is said of others is left out.

    Raises:
        DataDirError: When alternatives, words or names hold line breaks (or words white space),
            when times or weights are no finite numbers from 0 on, or when experts or weights are
            given for some utterances only.
    """
    ordered = sorted(utt_ids, key=str.encode)
    lines: dict[str, list[str]] = {name: [] for name in EXTRA_FILES}
    for key in ordered:
        lines["text.alt"] += [f"{key} {text}" for text in extras.alternatives.get(key, ())]
        if key in extras.ctc:
            lines["text.ctc"].append(f"{key} {extras.ctc[key]}")
        for name, attribute in CTM_FILES.items():
            lines[name] += [
                f"{key} {_CHANNEL} {word.start:.3f} {word.duration:.3f} {word.word}"
                for word in getattr(extras, attribute).get(key, ())
            ]
        if key in extras.segments:
            values = (f"{s.start:.3f}:{s.end:.3f}:{s.language}" for s in extras.segments[key])
            lines["utt2segments"].append(f"{key} {' '.join(values)}")
        if key in extras.experts:
            lines["utt2experts"].append(f"{key} {extras.experts[key]}")
        if key in extras.weights:
            lines["utt2weight"].append(f"{key} {extras.weights[key]:g}")
    # Read as they will be read, so that nothing is written that is then refused.
    problems = [
        f"{name}: '{word.word}' of {key} is empty or holds white space"
        for name, attribute in CTM_FILES.items()
        for key in ordered
        for word in getattr(extras, attribute).get(key, ())
        if word.word.split() != [word.word]
    ]
    for name, rows in lines.items():
        if broken := [row for row in rows if "\n" in row or "\r" in row]:
            problems += [f"{name}: {row!r} holds a line break" for row in broken]
        elif rows:
            _parse(name, enumerate(rows, start=1), ordered, problems)
    if problems:
        raise DataDirError(f"cannot write {path}:\n  {listed(problems)}")
    for name, rows in lines.items():
        if rows:
            write_text(path / name, "".join(f"{row}\n" for row in rows))
        else:
            (path / name).unlink(missing_ok=True)


def read_extras(path: Path, utt_ids: Collection[str], problems: list[str]) -> Extras:
    """Read the optional files of a data directory.

    Args:
        path: The folder.
        utt_ids: Utterances of the set.
        problems: What is wrong is added to it, with file and line.
    """
    found = {
        name: _parse(name, read_lines(path / name), utt_ids, problems)
        for name in EXTRA_FILES
        if (path / name).is_file()
    }
    return Extras(
        alternatives=found.get("text.alt", {}),
        ctc={key: rows[0] for key, rows in found.get("text.ctc", {}).items()},
        timings=found.get("words.ctm", {}),
        phones=found.get("phones.ctm", {}),
        segments=found.get("utt2segments", {}),
        experts={key: rows[0] for key, rows in found.get("utt2experts", {}).items()},
        weights={key: rows[0] for key, rows in found.get("utt2weight", {}).items()},
    )


def extras_problems(
    extras: Extras, texts: Mapping[str, str], durations: Mapping[str, Seconds]
) -> list[str]:
    """Say where the optional files do not fit the set's transcripts and audio.

    Args:
        extras: What they say.
        texts: Normalised transcript by utterance id; empty where it is not known.
        durations: Seconds by utterance id, where known.
    """
    problems = []
    for key, words in extras.timings.items():
        if key in texts and " ".join(word.word for word in words) != texts[key]:
            problems.append(f"words.ctm: the words of {key} are not its text")
    for name, attribute in CTM_FILES.items():
        problems += [
            f"{name}: {key} ends after its audio ({durations[key]:.3f} s)"
            for key, words in getattr(extras, attribute).items()
            if words[-1].end > durations.get(key, math.inf) + _TOLERANCE
        ]
    for key, segments in extras.segments.items():
        ends = [0.0, *(segment.end for segment in segments)]
        if any(abs(s.start - end) > _TOLERANCE for s, end in zip(segments, ends, strict=False)):
            problems.append(f"utt2segments: the segments of {key} leave gaps or overlap")
        if abs(ends[-1] - durations.get(key, ends[-1])) > _TOLERANCE:
            problems.append(f"utt2segments: {key} does not end with its audio")
    return problems


def _parse(
    name: str, lines: Iterator[tuple[int, str]], utt_ids: Collection[str], problems: list[str]
) -> dict[str, tuple]:  # type: ignore[type-arg]
    """Read the lines of one file; note what is wrong with them."""
    known = set(utt_ids)
    table: dict[str, list[object]] = defaultdict(list)
    several = name in ("text.alt", *CTM_FILES)
    for number, line in lines:
        if name in CTM_FILES and line.startswith(_COMMENT):
            continue
        key, *rest = line.split(maxsplit=1)
        where = f"{name}:{number}: {key}"
        if key not in known:
            # One file of an aligner may serve several sets.
            if name == "phones.ctm":
                continue
            problems.append(f"{where} is not in wav.scp")
        elif not rest:
            problems.append(f"{where} has no value")
        elif key in table and not several:
            problems.append(f"{where} is there more than once")
        else:
            try:
                value = _VALUES[name](rest[0].strip(" \t"))
                table[key].append(value)
            except ValueError as error:
                problems.append(f"{where}: {error}")
    if name in CTM_FILES:
        for words in table.values():
            words.sort(key=lambda word: word.start)  # type: ignore[attr-defined]
    if name in ("utt2experts", "utt2weight"):
        problems += [f"{name} lacks {key}, which wav.scp has" for key in sorted(known - set(table))]
    if name == "utt2segments":
        return {key: values[0] for key, values in table.items()}  # type: ignore[misc]
    return {key: tuple(values) for key, values in table.items()}


def _word(value: str) -> Word:
    values = value.split()
    if len(values) not in (4, 5):  # a fifth is the recogniser's confidence
        raise ValueError(f"'{value}' is not '{_CHANNEL} start duration label'")
    return Word(_seconds(values[1]), _seconds(values[2]), values[3])


def _segments(value: str) -> tuple[Segment, ...]:
    segments = []
    for part in value.split():
        fields_ = part.split(":")
        if len(fields_) != 3 or not fields_[2]:
            raise ValueError(f"'{part}' is not start:end:language")
        segment = Segment(_seconds(fields_[0]), _seconds(fields_[1]), fields_[2])
        if segment.end <= segment.start:
            raise ValueError(f"'{part}' ends before it starts")
        segments.append(segment)
    return tuple(segments)


def _seconds(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"'{value}' is not a number from 0 on")
    return number


_VALUES: dict[str, Callable[[str], object]] = {
    "text.alt": str,
    "text.ctc": str,
    "words.ctm": _word,
    "phones.ctm": _word,
    "utt2segments": _segments,
    "utt2experts": str,
    "utt2weight": _seconds,
}
