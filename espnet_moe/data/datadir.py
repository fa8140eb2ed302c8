"""Kaldi data directories: what every stage after the corpus reader reads and writes.

    <name>/
      wav.scp        utt_id path             (or a part of a file, see ``espnet_moe.data.sources``)
      text           utt_id transcript
      utt2spk        utt_id speaker          spk2utt   speaker utt_id utt_id …
      utt2lang       utt_id language         utt2gender  utt_id m|f   (where known)
      utt2dur        utt_id seconds          (when known for every utterance)
      utt2num_samples, text.raw              (after formatting)
      skipped.tsv    utt_id<TAB>reason       (utterances lost on the way, if any)
      corpus         what it is of, a line each, such as Common Voice 26.0-2026-06-12
      text.alt text.ctc words.ctm phones.ctm utt2segments utt2experts utt2weight
                                             (see ``espnet_moe.data.extras``)

Lines are sorted as ``LC_ALL=C sort`` does.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from espnet_moe.data.extras import (
    CTM_FILES,
    EXTRA_FILES,
    Extras,
    extras_problems,
    read_extras,
    write_extras,
)
from espnet_moe.data.files import (
    DataDirError,
    file_sizes,
    listed,
    read_lines,
    write_table,
    write_text,
)
from espnet_moe.data.normalize import LANGUAGES
from espnet_moe.data.utterance import SAMPLE_RATE, Utterance, split_of

__all__ = [
    "DataDir",
    "DataDirError",
    "corpora_of",
    "read_datadir",
    "validate_datadir",
    "write_datadir",
]

_REQUIRED = ("wav.scp", "text", "utt2spk", "utt2lang")
_SORTED = ("utt2gender", "utt2dur", "utt2num_samples", "text.raw")
_OPTIONAL = (*_SORTED, "skipped.tsv")


@dataclass(frozen=True)
class DataDir(Extras):
    """All that a data directory holds; the optional files' attributes are those of ``Extras``.

    Attributes:
        utterances: In the byte order of their ids.
        num_samples: Samples by utterance id; empty before formatting.
        raw_text: Transcript before normalisation by utterance id; empty before formatting.
        skipped: Reason by id of each utterance lost on the way here.
        corpora: Names of the corpora it is of, with their releases, where known.
    """

    utterances: tuple[Utterance, ...]
    num_samples: Mapping[str, int] = field(default_factory=dict)
    raw_text: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    corpora: tuple[str, ...] = ()


def write_datadir(
    path: str | Path,
    utterances: Iterable[Utterance],
    *,
    num_samples: Mapping[str, int] | None = None,
    raw_text: Mapping[str, str] | None = None,
    skipped: Mapping[str, str] | None = None,
    extras: Extras | None = None,
    corpora: Iterable[str] = (),
) -> None:
    """Write a data directory, each file atomically; files of an earlier one go or are replaced.

    Args:
        path: The folder, made if missing; folders in it stay.
        utterances: In any order.
        num_samples: Samples at 16 kHz by utterance id, once the audio is formatted.
        raw_text: Transcripts before normalisation, by utterance id.
        skipped: Reason by id of each utterance left out.
        extras: What the optional files say, such as a whole ``DataDir``; of it the utterances
            written here.
        corpora: Names of the corpora that it is of.

    Raises:
        DataDirError: When an id repeats or holds white space, an id does not begin with its
            speaker's, a text, a path or a corpus's name holds a line break, or the extras are not
            as ``write_extras`` asks; everything wrong is listed.
    """
    path = Path(path)
    ordered = sorted(utterances, key=lambda utt: utt.utt_id.encode())
    names = sorted(set(corpora))
    problems = [f"corpus '{n}' is empty or holds a line break" for n in names if _broken(n)]
    problems += _utterance_problems(ordered)
    if problems:
        raise DataDirError(f"cannot write {path}:\n  {listed(problems)}")
    tables: dict[str, Mapping[str, object]] = {
        "text": {utt.utt_id: utt.text for utt in ordered},
        "utt2spk": {utt.utt_id: utt.speaker for utt in ordered},
        "spk2utt": _speaker_table(ordered),
        "utt2lang": {utt.utt_id: utt.language for utt in ordered},
        "utt2gender": {utt.utt_id: utt.gender for utt in ordered if utt.gender},
        "utt2dur": {u.utt_id: f"{u.duration:.4f}" for u in ordered if u.duration is not None},
        "utt2num_samples": num_samples or {},
        "text.raw": raw_text or {},
        "wav.scp": {utt.utt_id: utt.audio for utt in ordered},  # last: with it the set is whole
    }
    if len(tables["utt2dur"]) < len(ordered):
        tables["utt2dur"] = {}
    path.mkdir(parents=True, exist_ok=True)
    write_extras(path, extras or Extras(), tables["wav.scp"])
    _write_lines(path / "corpus", names)
    for name, table in tables.items():
        if table or name not in _OPTIONAL:
            write_table(path / name, table)
        else:
            (path / name).unlink(missing_ok=True)
    write_skipped(path, skipped or {})


def write_skipped(path: Path, skipped: Mapping[str, str]) -> None:
    """Write ``skipped.tsv`` into a data directory, or remove it when nothing was skipped."""
    rows = [f"{key}\t{' '.join(skipped[key].split())}" for key in sorted(skipped, key=str.encode)]
    _write_lines(path / "skipped.tsv", rows)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write a file, or remove it when there is nothing to say."""
    if lines:
        write_text(path, "".join(f"{line}\n" for line in lines))
    else:
        path.unlink(missing_ok=True)


def read_datadir(path: str | Path) -> list[Utterance]:
    """Read the utterances of a data directory.

    The split is told by the folder's name (``split_of``); the duration by utt2dur, else by
    utt2num_samples.

    Raises:
        DataDirError: When a file is missing or damaged, or the files do not list the same ids.
    """
    return list(load_datadir(path).utterances)


def load_datadir(path: str | Path) -> DataDir:
    """Read all that a data directory holds; see ``read_datadir``."""
    path = Path(path)
    if not path.is_dir():
        raise DataDirError(f"data directory {path} does not exist; run the stage that writes it")
    if missing := [name for name in _REQUIRED if not (path / name).is_file()]:
        raise DataDirError(
            f"{path} is no Kaldi data directory: it has no {', '.join(missing)}; run the stage "
            "that writes it again"
        )
    problems: list[str] = []
    tables = {name: _read_table(path / name, problems) for name in _REQUIRED + _OPTIONAL}
    ids = tables["wav.scp"].keys()
    for name in (*_REQUIRED, "utt2num_samples", "text.raw"):
        if tables[name] or name in _REQUIRED:
            problems += _id_problems(name, ids, tables[name].keys())
    num_samples = _numbers(tables["utt2num_samples"], path / "utt2num_samples", int, problems)
    durations = _numbers(tables["utt2dur"], path / "utt2dur", float, problems)
    extras = read_extras(path, ids, problems)
    for key, value in tables["utt2gender"].items():
        if value not in ("m", "f"):
            problems.append(f"utt2gender: {key} has gender '{value}'; legal are m and f")
    if problems:
        raise DataDirError(f"data directory {path} is damaged:\n  {listed(problems)}")
    samples = {key: count / SAMPLE_RATE for key, count in num_samples.items()}
    utterances = tuple(
        Utterance(
            utt_id=key,
            audio=tables["wav.scp"][key],
            text=tables["text"][key],
            speaker=tables["utt2spk"][key],
            language=tables["utt2lang"][key],
            split=split_of(path.name),
            gender=tables["utt2gender"].get(key),  # type: ignore[arg-type]
            duration=durations.get(key, samples.get(key)),
        )
        for key in sorted(ids, key=str.encode)
    )
    return DataDir(
        utterances,
        num_samples,
        tables["text.raw"],
        tables["skipped.tsv"],
        _read_corpora(path / "corpus"),
        **vars(extras),
    )


def corpora_of(parts: Iterable[DataDir]) -> tuple[str, ...]:
    """Name the corpora that several sets are of; a set without utterances is of none."""
    return tuple(sorted({name for part in parts if part.utterances for name in part.corpora}))


def validate_datadir(path: str | Path, check_audio: bool = False) -> None:
    """Check a data directory against Kaldi's rules and ours.

    Args:
        path: The folder.
        check_audio: Decode every audio file too (slow).

    Raises:
        DataDirError: Listing everything wrong: ids that repeat, differ between files or are not
            sorted, a speaker map that does not match, unknown languages, durations that are not
            positive, words or segments that do not fit text and audio, missing, empty or (with
            ``check_audio``) undecodable audio.
    """
    path = Path(path)
    data = load_datadir(path)
    utterances = data.utterances
    problems = _utterance_problems(utterances)
    for name in (*_REQUIRED, "spk2utt", *_SORTED, *EXTRA_FILES):
        if name in CTM_FILES:  # of other tools, maybe
            continue
        if name == "spk2utt" and not (path / name).is_file():
            problems.append("spk2utt is missing")
        elif (path / name).is_file():
            keys = [line.split(maxsplit=1)[0] for _, line in read_lines(path / name)]
            if keys != sorted(keys, key=str.encode):
                problems.append(f"{name} is not sorted; sort it under LC_ALL=C")
    if (path / "spk2utt").is_file():
        written = _read_table(path / "spk2utt", problems)
        if written != _speaker_table(utterances):
            problems.append("spk2utt does not match utt2spk; make it again from utt2spk")
    spoken = {segment.language for parts in data.segments.values() for segment in parts}
    for name, languages in {
        "utt2lang": {utt.language for utt in utterances},
        "utt2segments": spoken,
    }.items():
        for language in sorted(languages - set(LANGUAGES)):
            legal = ", ".join(LANGUAGES)
            problems.append(f"{name}: unknown language '{language}'; legal: {legal}")
    for utt in utterances:
        if utt.duration is not None and not (0 < utt.duration < math.inf):
            problems.append(f"{utt.utt_id} has a duration of {utt.duration} s")
    # Before formatting, text is not what words are compared with, nor durations exact.
    texts = {utt.utt_id: utt.text for utt in utterances} if data.num_samples else {}
    seconds = {key: count / SAMPLE_RATE for key, count in data.num_samples.items()}
    problems += extras_problems(data, texts, seconds)
    problems += _audio_problems(utterances, check_audio)
    if not utterances:
        problems.append("it holds no utterance")
    if problems:
        raise DataDirError(f"data directory {path} is not valid:\n  {listed(problems)}")


def _utterance_problems(utterances: Iterable[Utterance]) -> list[str]:
    problems: list[str] = []
    seen: set[str] = set()
    for utt in utterances:
        if utt.utt_id in seen:
            problems.append(f"{utt.utt_id} is there more than once")
        seen.add(utt.utt_id)
        for value in (utt.utt_id, utt.speaker, utt.language):
            if not value or len(value.split()) != 1 or value != value.strip():
                problems.append(f"'{value}' (of {utt.utt_id}) is empty or holds white space")
        # A speaker with a character at or below "-" would sort differently from its utterances.
        if any(character <= "-" for character in utt.speaker):
            problems.append(f"speaker '{utt.speaker}' holds '-' or a character below it in ASCII")
        if not utt.utt_id.startswith(utt.speaker + "-"):
            problems.append(f"{utt.utt_id} does not begin with its speaker, '{utt.speaker}-'")
        if "\n" in utt.text or "\r" in utt.text:
            problems.append(f"the text of {utt.utt_id} holds a line break")
        if not utt.audio.strip() or "\n" in utt.audio:
            problems.append(f"the audio path of {utt.utt_id} is empty or holds a line break")
    return problems


def _audio_problems(utterances: Iterable[Utterance], decode: bool) -> list[str]:
    from espnet_moe.data.audio import AudioError, load_audio

    problems = []
    for audio, size in file_sizes(utt.audio for utt in utterances).items():
        if size is None:
            problems.append(f"{audio} does not exist")
        elif size == 0:
            problems.append(f"{audio} is empty (0 bytes)")
        elif decode:
            try:
                load_audio(audio)
            except AudioError as error:
                problems.append(str(error))
    return problems


def _speaker_table(utterances: Iterable[Utterance]) -> dict[str, str]:
    speakers: dict[str, list[str]] = defaultdict(list)
    for utt in utterances:
        speakers[utt.speaker].append(utt.utt_id)
    return {speaker: " ".join(ids) for speaker, ids in speakers.items()}


def _read_table(path: Path, problems: list[str]) -> dict[str, str]:
    """Read ``key value`` lines (tab-separated in a .tsv); note keys that repeat."""
    table: dict[str, str] = {}
    if path.name in _OPTIONAL and not path.is_file():
        return table
    separator = "\t" if path.suffix == ".tsv" else None
    for number, line in read_lines(path):
        key, *rest = line.split(separator, maxsplit=1)
        if key in table:
            problems.append(f"{path.name}:{number}: {key} is there more than once")
        if not rest and path.name not in ("text", "text.raw", "skipped.tsv"):
            problems.append(f"{path.name}:{number}: {key} has no value")
        table[key] = rest[0].strip(" \t") if rest else ""
    return table


def _read_corpora(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    return tuple(line.strip() for _, line in read_lines(path))


def _broken(name: str) -> bool:
    return len(name.splitlines()) != 1 or not name.strip()


def _id_problems(name: str, ids: Iterable[str], keys: Iterable[str]) -> list[str]:
    lacking, extra = set(ids) - set(keys), set(keys) - set(ids)
    return [f"{name} lacks {key}, which wav.scp has" for key in sorted(lacking)] + [
        f"{name} has {key}, which wav.scp lacks" for key in sorted(extra)
    ]


def _numbers(
    table: Mapping[str, str], path: Path, kind: Callable[[str], float], problems: list[str]
) -> dict[str, int]:
    numbers = {}
    for key, value in table.items():
        try:
            numbers[key] = kind(value)
        except ValueError:
            problems.append(f"{path.name}: '{value}' of {key} is not a number")
    return numbers  # type: ignore[return-value]
