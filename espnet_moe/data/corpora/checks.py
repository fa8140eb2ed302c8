"""The checks every corpus goes through before it is used; their counts go into the log."""

import itertools
import json
import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from tqdm import tqdm

from espnet_moe.data.audio import AudioError, load_audio
from espnet_moe.data.corpora.layout import CorpusError
from espnet_moe.data.files import MAX_LISTED, file_sizes, listed
from espnet_moe.data.normalize import INDIC, NORMALIZER, normalize
from espnet_moe.data.sources import file_of
from espnet_moe.data.utterance import Seconds, Utterance, is_test

MAX_DURATION: Seconds = 30.0
FINDINGS = (
    "missing_audio",
    "empty_audio",
    "undecodable_audio",
    "empty_text",
    "too_long",
    "not_nfc",
    "latin_letters",
    "digits",
    "zero_width",
)

_LATIN = re.compile(r"[A-Za-z]")
_ZERO_WIDTH = re.compile("[\u200b-\u200f\u2060\ufeff]")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CorpusChecks:
    """What the checks found.

    Attributes:
        utterances: Count by split.
        speakers: Count by split.
        hours: By split; ``None`` where a duration is not known before decoding.
        speaker_overlap: Count of speakers in both splits, by ``train/test`` and so on.
        sentence_overlap: Count of normalised sentences in both splits.
        bad_audio: Reason by id of each utterance whose audio is missing, empty, or (where probed)
            undecodable.
        findings: Utterance ids by what was found in them: ``missing_audio``, ``empty_audio``,
            ``undecodable_audio`` (empty unless probed), ``empty_text`` (after normalisation),
            ``too_long`` (over 30 s, where the duration is known), ``not_nfc``, ``latin_letters``
            (in an Indic transcript), ``digits``, ``zero_width``.
        audio_probed: Whether the audio was decoded.
    """

    utterances: Mapping[str, int]
    speakers: Mapping[str, int]
    hours: Mapping[str, float | None]
    speaker_overlap: Mapping[str, int]
    sentence_overlap: Mapping[str, int]
    bad_audio: Mapping[str, str]
    findings: Mapping[str, Sequence[str]]
    audio_probed: bool

    def to_json(self, **facts: object) -> str:
        """Return counts and examples as JSON, after further facts (corpus, release, …)."""
        fields = asdict(self)
        findings = fields.pop("findings")
        del fields["bad_audio"]
        summary = {
            name: {"count": len(ids), "examples": list(ids[:MAX_LISTED])}
            for name, ids in findings.items()
        }
        document = {**facts, "normalizer": NORMALIZER, **fields, **summary}
        return json.dumps(document, ensure_ascii=False, indent=2) + "\n"

    def log(self) -> None:
        """Log every count; a warning where something was found."""
        for split, count in self.utterances.items():
            hours = self.hours[split]
            length = "" if hours is None else f", {hours:.2f} h"
            speakers = self.speakers[split]
            logger.info("%s: %d utterances, %d speakers%s", split, count, speakers, length)
        for what, overlap in (
            ("speakers", self.speaker_overlap),
            ("sentences", self.sentence_overlap),
        ):
            for pair, count in overlap.items():
                level = logging.WARNING if count else logging.INFO
                logger.log(level, "check: %d %s in both of %s", count, what, pair)
        for name, ids in self.findings.items():
            if name == "undecodable_audio" and not self.audio_probed:
                logger.info("check: %s: not looked at before formatting", name)
                continue
            examples = f" ({', '.join(ids[:3])}{', …' if len(ids) > 3 else ''})" if ids else ""
            level = logging.WARNING if ids else logging.INFO
            logger.log(level, "check: %s: %d%s", name, len(ids), examples)


def check_corpus(utterances: Sequence[Utterance], probe_audio: bool = False) -> CorpusChecks:
    """Run the checks on all splits of a corpus together.

    Args:
        utterances: Of any number of splits.
        probe_audio: Decode every file (slow; formatting does so later anyway).
    """
    findings: dict[str, list[str]] = {name: [] for name in FINDINGS}
    bad_audio = _bad_audio(utterances, probe_audio, findings)
    speakers: dict[str, set[str]] = defaultdict(set)
    sentences: dict[str, set[str]] = defaultdict(set)
    durations: dict[str, list[Seconds | None]] = defaultdict(list)
    for utt in utterances:
        sentence = normalize(utt.text, utt.language)
        speakers[utt.split].add(utt.speaker)
        durations[utt.split].append(utt.duration)
        sentences[utt.split].update({sentence} - {""})
        for name in _text_findings(utt, sentence):
            findings[name].append(utt.utt_id)
        if utt.duration is not None and utt.duration > MAX_DURATION:
            findings["too_long"].append(utt.utt_id)
    pairs = list(itertools.combinations(speakers, 2))
    return CorpusChecks(
        utterances={split: len(known) for split, known in durations.items()},
        speakers={split: len(names) for split, names in speakers.items()},
        hours={split: _hours(known) for split, known in durations.items()},
        speaker_overlap={f"{a}/{b}": len(speakers[a] & speakers[b]) for a, b in pairs},
        sentence_overlap={f"{a}/{b}": len(sentences[a] & sentences[b]) for a, b in pairs},
        bad_audio=bad_audio,
        findings=findings,
        audio_probed=probe_audio,
    )


def drop_bad_audio(
    utterances: Iterable[Utterance], checks: CorpusChecks, allow_bad_test_audio: bool = False
) -> list[Utterance]:
    """Leave out the utterances whose audio the checks found bad.

    Args:
        utterances: Those that were checked.
        checks: What was found.
        allow_bad_test_audio: Leave them out of test sets too.

    Raises:
        CorpusError: When one is in a test set and that is not allowed, or nothing is left of a
            split.
    """
    utterances = list(utterances)
    kept = [utt for utt in utterances if utt.utt_id not in checks.bad_audio]
    lost = [
        utt.utt_id for utt in utterances if is_test(utt.split) and utt.utt_id in checks.bad_audio
    ]
    if lost and not allow_bad_test_audio:
        reasons = listed(checks.bad_audio[key] for key in lost)
        raise CorpusError(
            f"{len(lost)} audio files of the test set are bad; unpack the corpus again, or leave "
            f"them out, named in the results, with --allow_bad_test_audio true:\n  {reasons}"
        )
    for split in dict.fromkeys(utt.split for utt in utterances):
        if not any(utt.split == split for utt in kept):
            reasons = listed(
                itertools.islice(
                    (checks.bad_audio[utt.utt_id] for utt in utterances if utt.split == split), 3
                )
            )
            raise CorpusError(
                f"no audio file of split {split} is good; was the audio unpacked?\n  {reasons}"
            )
    return kept


def _bad_audio(
    utterances: Sequence[Utterance], probe: bool, findings: Mapping[str, list[str]]
) -> dict[str, str]:
    sizes = file_sizes(utt.audio for utt in utterances)
    bad = {}
    for utt in tqdm(utterances, "probing audio", disable=None if probe else True):
        if sizes[utt.audio] is None:
            findings["missing_audio"].append(utt.utt_id)
            bad[utt.utt_id] = f"{file_of(utt.audio)} does not exist"
        elif sizes[utt.audio] == 0:
            findings["empty_audio"].append(utt.utt_id)
            bad[utt.utt_id] = f"{file_of(utt.audio)} is empty (0 bytes)"
        elif probe:
            try:
                load_audio(utt.audio)
            except AudioError as error:
                findings["undecodable_audio"].append(utt.utt_id)
                bad[utt.utt_id] = str(error)
    return bad


def _text_findings(utt: Utterance, sentence: str) -> Iterable[str]:
    if not sentence:
        yield "empty_text"
    if not unicodedata.is_normalized("NFC", utt.text):
        yield "not_nfc"
    if utt.language in INDIC and _LATIN.search(utt.text):
        yield "latin_letters"
    if any(character.isdecimal() for character in utt.text):
        yield "digits"
    if _ZERO_WIDTH.search(utt.text):
        yield "zero_width"


def _hours(durations: Sequence[Seconds | None]) -> float | None:
    known = [duration for duration in durations if duration is not None]
    return round(sum(known) / 3600, 4) if len(known) == len(durations) else None
