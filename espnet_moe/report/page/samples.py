"""Utterances to listen to: chosen by a rule, with what each system made of them."""

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from espnet_moe.data.audio import SAMPLE_RATE, load_audio
from espnet_moe.data.datadir import load_datadir
from espnet_moe.data.extras import Segment
from espnet_moe.errors import UserError
from espnet_moe.report.page.blocks import Section, Text
from espnet_moe.report.page.experiment import Experiment
from espnet_moe.report.page.scripts import language_of
from espnet_moe.report.summary import Row, labels
from espnet_moe.scoring.archive import Archive
from espnet_moe.scoring.error_rates import Alignment, count_best_edits
from espnet_moe.scoring.folders import ALL, Decoded, References, read_decoded, read_references
from espnet_moe.scoring.systems import PARTS

LONGEST = 20.0  # seconds; longer utterances are not chosen
AUDIO_BYTES = 3_000_000  # of all players' MP3 in the page
_COMPRESSION = 0.9  # of soundfile's MP3: about 25 kbit/s of 16 kHz speech


@dataclass(frozen=True)
class Word:
    """A word of a hypothesis beside the reference.

    Attributes:
        kind: ``ok``, ``sub``, ``ins`` or ``del``.
        text: The word heard; the reference's where it was left out.
        instead_of: The reference's word where another was heard.
        language: Of the text, and of the word it stands for.
    """

    kind: str
    text: str
    language: str
    instead_of: str = ""
    instead_language: str = ""


@dataclass(frozen=True)
class Stretch:
    """A language from one time to another, in percent of the utterance."""

    language: str
    start: float
    width: float
    told: str


@dataclass(frozen=True)
class Decision:
    """What systems decided alike: gates, and languages in time where they tell of any."""

    systems: tuple[str, ...]
    language: str
    gates: tuple[tuple[str, float], ...]
    stretches: tuple[Stretch, ...]


@dataclass
class Hypothesis:
    """One text, and the systems that gave it."""

    words: tuple[Word, ...]
    errors: int
    systems: list[str] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)


@dataclass
class Sample:
    """An utterance of the page."""

    utt_id: str
    role: str
    seconds: float | None
    languages: tuple[str, ...]
    reference: tuple[tuple[str, str], ...]  # words with their languages
    stretches: tuple[Stretch, ...]
    audio: str  # a data: address; empty where there is none
    hypotheses: list[Hypothesis]


@dataclass(frozen=True)
class SampleSet:
    """The utterances of a set and language."""

    title: str
    slug: str
    samples: tuple[Sample, ...]
    kind: str = "samples"


@dataclass
class _Room:
    """Bytes that are left for audio."""

    left: int = AUDIO_BYTES


def samples(found: Experiment, seed: int) -> Section:
    """Choose utterances of every set and show them.

    Args:
        found: The experiment.
        seed: Of the choice.
    """
    section = Section("samples", "Listen")
    places = _places(found.rows)
    if not places or not found.sets:
        return section
    section.add(
        Text(
            "Of every set and language four utterances of at most "
            f"{LONGEST:g} s: by the word error rate, averaged over the systems that decoded the "
            "set, the one with the lowest (best), the highest (worst) and the median rate "
            "(typical), and one of the others by lot. Equal ones are in the order of the SHA-256 "
            f"of '{seed}:<utterance id>', which also draws the lot. Systems with the same text "
            "share a line. The audio is MP3 at about 25 kbit/s: what systems heard was better."
        ),
        Text("× substituted (for the word in small type), + inserted, − left out."),
    )
    archive, room = Archive(found.exp), _Room()
    for (name, language), rows in places.items():
        try:
            chosen = _chosen(found, archive, name, rows, seed)
            shown = _shown(found, name, rows, chosen, room)
        except UserError as error:
            found.lacks("samples", f"{name} ({language})", error, broken=True)
            continue
        if shown:
            slug = f"samples-{name}-{language}"
            section.add(SampleSet(f"{name} ({language})", slug, tuple(shown)))
    return section


def _places(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows of each set and language; not those that pool languages shown by themselves."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if not row["set"].endswith(PARTS):
            found.setdefault((row["set"], row["language"]), []).append(row)
    several = {name for name, language in found if language != ALL}
    return {
        (name, language): own
        for (name, language), own in found.items()
        if language != ALL or name not in several
    }


def _chosen(
    found: Experiment, archive: Archive, name: str, rows: Sequence[Row], seed: int
) -> dict[str, str]:
    """Choose utterances of a set by the rule that the page states.

    Returns:
        What each is an example of, by utterance id.

    Raises:
        UserError: Where score files cannot be read, or are of different utterances.
    """
    totals: dict[str, float] = {}
    for row in rows:
        ids, counts = archive.counts(row)
        rates = counts.errors / np.maximum(1, counts.lengths)
        if totals and totals.keys() != set(ids):
            raise UserError(f"systems were scored on different utterances of {name}: score again")
        for utt_id, rate in zip(ids, rates, strict=True):
            totals[utt_id] = totals.get(utt_id, 0.0) + float(rate)
    lengths = {u.utt_id: u.duration for u in load_datadir(found.data / name).utterances}
    short = [utt_id for utt_id in totals if (lengths.get(utt_id) or 0.0) <= LONGEST]
    lots = {u: hashlib.sha256(f"{seed}:{u}".encode()).hexdigest() for u in short}
    ranked = sorted(short, key=lambda utt_id: (round(totals[utt_id], 9), lots[utt_id]))
    roles: dict[str, str] = {}
    if ranked:
        for place, role in ((0, "best"), (len(ranked) // 2, "typical"), (-1, "worst")):
            roles.setdefault(ranked[place], role)
    if others := [utt_id for utt_id in short if utt_id not in roles]:
        roles[min(others, key=lambda utt_id: lots[utt_id])] = "by lot"
    return roles


def _shown(
    found: Experiment, name: str, rows: Sequence[Row], roles: dict[str, str], room: _Room
) -> list[Sample]:
    references = read_references(found.data / name)
    audio = {u.utt_id: u.audio for u in load_datadir(found.data / name).utterances}
    places = {utt.utt_id: i for i, utt in enumerate(references.utterances)}
    shown = []
    for utt_id, role in roles.items():
        if utt_id not in places:
            why = "scored, but not in the data directory any more: score again"
            found.lacks("samples", f"{name}: {utt_id}", why, broken=True)
            continue
        i = places[utt_id]
        languages = references.languages[i]
        truth = references.segments[i] if references.segments else ()
        end = truth[-1].end if truth else references.durations[i]
        shown.append(
            Sample(
                utt_id=utt_id,
                role=role,
                seconds=references.durations[i],
                languages=languages,
                reference=tuple(
                    (word, language_of(word, languages)) for word in references.texts[i].split()
                ),
                stretches=_stretches([(s.start, s.end, s.language) for s in truth], end),
                audio=_player(found, name, utt_id, audio[utt_id], room),
                hypotheses=[],
            )
        )
    for row, label in zip(rows, labels(rows), strict=True):
        folder = found.exp / row["system"] / row["inference_tag"]
        try:
            decoded = read_decoded(folder, references)
        except UserError as error:
            found.lacks("samples", f"{label} on {name}", error, broken=True)
            continue
        for sample in shown:
            _add(sample, label, places[sample.utt_id], references, decoded)
    return shown


def _add(sample: Sample, label: str, i: int, references: References, decoded: Decoded) -> None:
    """Add what a system made of an utterance, to an equal text where there is one."""
    texts = (references.texts[i], *references.alternatives[i])
    counts, (alignment,) = count_best_edits([texts], [decoded.hypotheses[i]], "word")
    words = _words(alignment, sample.languages)
    own = next((h for h in sample.hypotheses if h.words == words), None)
    if own is None:
        own = Hypothesis(words, int(counts.errors[0]))
        sample.hypotheses.append(own)
    own.systems.append(label)
    entry: dict[str, Any] = decoded.stats[i] if decoded.stats else {}
    route = entry.get("route") if isinstance(entry.get("route"), dict) else None
    gates = (route or {}).get("gates") or {}
    segments: Sequence[Segment] = references.segments[i] if references.segments else ()
    end = segments[-1].end if segments else references.durations[i]
    decision = Decision(
        systems=(label,),
        language=str(entry.get("language", "")),
        gates=tuple((str(name), round(float(gate), 2)) for name, gate in gates.items()),
        stretches=_stretches((route or {}).get("segments") or (), end),
    )
    for place, other in enumerate(own.decisions):
        if replace(other, systems=()) == replace(decision, systems=()):
            own.decisions[place] = replace(other, systems=(*other.systems, label))
            break
    else:
        own.decisions.append(decision)


def _words(alignment: Alignment, languages: Sequence[str]) -> tuple[Word, ...]:
    words = []
    for wanted, heard in zip(alignment.reference, alignment.hypothesis, strict=True):
        text = heard if heard is not None else wanted or ""
        kind = "ok" if wanted == heard else "ins" if wanted is None else "sub"
        other = wanted or "" if kind == "sub" else ""
        if heard is None:
            kind, other = "del", ""
        words.append(
            Word(kind, text, language_of(text, languages), other, language_of(other, languages))
        )
    return tuple(words)


def _stretches(segments: Sequence[Sequence[Any]], end: float | None) -> tuple[Stretch, ...]:
    if not end:
        return ()
    return tuple(
        Stretch(
            language=str(name),
            start=round(100 * float(start) / end, 2),
            width=round(100 * (min(float(stop), end) - float(start)) / end, 2),
            told=f"{name} {float(start):.2f}-{float(stop):.2f} s",
        )
        for start, stop, name in segments
    )


def _player(found: Experiment, name: str, utt_id: str, audio: str, room: _Room) -> str:
    """Encode an utterance's audio as a ``data:`` address; empty, with a line, where it cannot."""
    try:
        content = encode(audio)
    except (UserError, OSError, soundfile.SoundFileError, ValueError) as error:
        found.lacks("samples", f"audio of {name}: {utt_id}", error, broken=True)
        return ""
    if len(content) > room.left:
        why = f"the page has room for {AUDIO_BYTES / 1e6:g} MB of audio"
        found.lacks("samples (in part)", f"players from {name} on", why)
        room.left = 0
        return ""
    room.left -= len(content)
    return "data:audio/mpeg;base64," + base64.b64encode(content).decode("ascii")


def encode(audio: str | Path) -> bytes:
    """Read an utterance's audio and return it as MP3, which every browser plays.

    Raises:
        AudioError: Where it cannot be read.
        soundfile.SoundFileError: Where the installed library cannot write MP3.
    """
    found = io.BytesIO()
    soundfile.write(
        found,
        load_audio(audio),
        SAMPLE_RATE,
        format="MP3",
        subtype="MPEG_LAYER_III",
        compression_level=_COMPRESSION,
    )
    return found.getvalue()
