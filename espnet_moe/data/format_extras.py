"""Stage 2 for the optional files of a data directory: texts normalised, times shifted."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from espnet_moe.data.datadir import DataDir
from espnet_moe.data.extras import NOTHING, Extras, Segment, Word
from espnet_moe.data.files import listed
from espnet_moe.data.format_workers import Outcome
from espnet_moe.data.normalize import normalize
from espnet_moe.data.utterance import SAMPLE_RATE, Seconds

logger = logging.getLogger(__name__)


def format_extras(
    data: DataDir, texts: Mapping[str, str], outcomes: Mapping[str, Outcome]
) -> Extras:
    """Bring the optional files in line with the formatted texts and audio.

    Alternatives are normalised as the transcripts are, and left out where nothing is left of them
    or they are the transcript; what a CTC branch is to hear is normalised, too. Times are moved by
    what was cut at the beginning and kept within the audio; phones that were cut are left out.
    Words are normalised one by one; an utterance whose words are not its transcript then (a number
    written out, for one) loses their times, and the log counts such utterances.

    Args:
        data: The set before formatting.
        texts: Normalised transcript by utterance id.
        outcomes: What became of the audio of each utterance kept.
    """
    languages = {utt.utt_id: utt.language for utt in data.utterances}
    alternatives = {
        key: kept
        for key, several in data.alternatives.items()
        if (kept := _alternatives(several, texts[key], languages[key]))
    }
    ctc = {
        key: heard if heard == NOTHING else normalize(heard, languages[key]) or NOTHING
        for key, heard in data.ctc.items()
        if key in texts
    }
    timings, phones, segments, lost = {}, {}, {}, []
    for key, outcome in outcomes.items():
        cut, length = (outcome.cut or 0) / SAMPLE_RATE, outcome.samples / SAMPLE_RATE
        if key in data.timings:
            words = _words(data.timings[key], languages[key])
            if [word.word for word in words] == texts[key].split():
                timings[key] = tuple(_moved(word, cut, length) for word in words)
            else:
                lost.append(key)
        if key in data.phones:
            moved = (_moved(phone, cut, length) for phone in data.phones[key])
            phones[key] = tuple(phone for phone in moved if phone.duration > 0)
        if key in data.segments:
            segments[key] = _moved_segments(data.segments[key], cut, length)
    if lost:
        logger.warning(
            "%d of %d utterances lose their word times: their words are not their text: %s",
            len(lost),
            len(data.timings),
            listed(lost, ", "),
        )
    return Extras(
        alternatives=alternatives,
        ctc=ctc,
        timings=timings,
        phones={key: kept for key, kept in phones.items() if kept},
        segments=segments,
        experts=data.experts,
        weights=data.weights,
    )


def _alternatives(several: Sequence[str], text: str, language: str) -> tuple[str, ...]:
    normal = dict.fromkeys(normalize(other, language) for other in several)
    return tuple(other for other in normal if other and other != text)


def _words(words: Sequence[Word], language: str) -> list[Word]:
    """Normalise each word; what was punctuation only goes."""
    normal = [replace(word, word=normalize(word.word, language)) for word in words]
    return [word for word in normal if word.word]


def _moved(word: Word, cut: Seconds, length: Seconds) -> Word:
    start = min(max(word.start - cut, 0.0), length)
    end = min(max(word.end - cut, start), length)
    return Word(start, end - start, word.word)


def _moved_segments(
    segments: Sequence[Segment], cut: Seconds, length: Seconds
) -> tuple[Segment, ...]:
    """Move all boundaries; the first segment begins and the last ends with the audio."""
    bounds = [min(max(segment.end - cut, 0.0), length) for segment in segments]
    starts, ends = [0.0, *bounds[:-1]], [*bounds[:-1], length]
    return tuple(
        Segment(start, end, segment.language)
        for start, end, segment in zip(starts, ends, segments, strict=True)
        if end > start
    )
