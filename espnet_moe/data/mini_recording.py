"""Recordings of the mini corpus: a sentence spoken, varied, and encoded, always the same way."""

import ctypes
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from espnet_moe.data.extras import Word
from espnet_moe.data.files import write_bytes
from espnet_moe.data.mini_voices import PhoneEvent, Synthesizer, Voice, WordEvent, add_noise
from espnet_moe.data.utterance import Seconds
from espnet_moe.errors import UserError

Samples = npt.NDArray[np.float32]

JITTER = 0.08  # of a voice's pitch and speed, up or down
NOISY_SHARE = 0.6  # of the recordings
SNR = (10.0, 40.0)  # dB
STREET_SNR = (5.0, 15.0)  # dB, where noise is what the recording is for
MAX_SILENCE: Seconds = 0.4  # at either end
PEAK = (0.1, 0.8)

_HOPS_PER_SECOND = 100  # durations are multiples of 10 ms: exact in every table
_FORMATS = {
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".flac": ("FLAC", "PCM_16"),
    ".opus": ("OGG", "OPUS"),
}
_AAC_BIT_RATE = 64000
# Samples that decoding puts before the first; the other formats say how many to leave out.
_DELAYS = {".m4a": 1024}
_QUIET = 0.01  # of the peak: below it nobody speaks


@dataclass(frozen=True)
class Job:
    """One audio file to make.

    Attributes:
        text: What is spoken, normalised.
        language: ISO 639-1 code.
        voice: Who speaks it.
        key: Names the recording: all that is drawn for it follows from this.
        rate: Hz.
        street: Whether to add much noise, on top of the same recording without it.
        path: File to write; its suffix tells the format.
    """

    text: str
    language: str
    voice: Voice
    key: str
    rate: int
    street: bool
    path: str


@dataclass(frozen=True)
class Take:
    """A sentence as spoken.

    Attributes:
        samples: ``(samples,)`` float32 in [-1, 1], as many as last a multiple of 10 ms.
        words: The sentence's words in the samples; empty where espeak-ng does not tell them apart.
        phones: Its phones in the samples, IPA.
    """

    samples: Samples
    words: tuple[Word, ...]
    phones: tuple[Word, ...]


@dataclass(frozen=True)
class Recorded:
    """What is known of an audio file.

    Attributes:
        duration: Before encoding, seconds.
        words: The sentence's words in the file as it is decoded; may be empty.
        phones: Likewise.
    """

    duration: Seconds
    words: tuple[Word, ...]
    phones: tuple[Word, ...]


def draw_of(*key: object) -> np.random.Generator:
    """Return random numbers that follow from a key alone, on every machine."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def share_of(*key: object) -> float:
    """Return a number in [0, 1) that follows from a key alone."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def record(job: Job) -> Recorded:
    """Make a file, unless it is there; either way say what is in it.

    To be called in a process that does nothing else (espeak-ng is global to a process).

    Args:
        job: The file to make.

    Raises:
        UserError: When espeak-ng cannot speak the text.
        OSError: When the file cannot be written.
    """
    take = perform(job)
    path = Path(job.path)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, encode(take.samples, job.rate, path.suffix))
    delay = _DELAYS.get(path.suffix, 0) / job.rate
    words, phones = _later(take.words, delay), _later(take.phones, delay)
    return Recorded(len(take.samples) / job.rate, words, phones)


def perform(job: Job) -> Take:
    """Speak a sentence with a little less or more pitch, speed, silence, volume and noise."""
    draw = draw_of("recording", job.key)
    pitch, speed = draw.uniform(1 - JITTER, 1 + JITTER, size=2)
    voice = replace(
        job.voice,
        pitch=min(99, round(job.voice.pitch * pitch)),
        speed=round(job.voice.speed * speed),
    )
    speech, word_events, phone_events = _speak_afresh(job.text, job.language, voice, job.rate)
    speech = speech * np.float32(draw.uniform(*PEAK) / np.abs(speech).max())
    end = 1 + int(np.flatnonzero(np.abs(speech) > _QUIET * np.abs(speech).max())[-1])
    before, after = (draw.uniform(0, MAX_SILENCE, size=2) * job.rate).astype(int)
    words = _later(align(job.text, word_events, end / job.rate), before / job.rate)
    phones = _later(place_phones(phone_events, speech[:end], job.rate), before / job.rate)
    after += -(before + len(speech) + after) % (job.rate // _HOPS_PER_SECOND)
    speech = np.pad(speech, (before, after))
    if draw.random() < NOISY_SHARE:
        speech = add_noise(speech, draw.uniform(*SNR), draw)
    if job.street:
        speech = add_noise(speech, draw.uniform(*STREET_SNR), draw)
    return Take(np.clip(speech, -1.0, 1.0), words, phones)


def _later(words: Iterable[Word], seconds: Seconds) -> tuple[Word, ...]:
    return tuple(replace(word, start=word.start + seconds) for word in words)


def align(text: str, events: Sequence[WordEvent], end: Seconds) -> tuple[Word, ...]:
    """Give the words of a text the times of the synthesizer's words.

    A word of the text begins where the first event among its characters does (``l'albero`` is one
    word here and two there), and ends where the next one begins.

    Args:
        text: What was spoken; words are separated by white space.
        events: Where the synthesizer began its words.
        end: Of the speech, seconds.

    Returns:
        All words, without gaps between them; none where a word has no event (the synthesizer said
        it together with its neighbour) or they are not in the order of the text.
    """
    spans = [(match.start(), match.end(), match.group()) for match in re.finditer(r"\S+", text)]
    starts = []
    for first, last, _ in spans:
        inside = [event.start for event in events if first <= event.position < last]
        if not inside:
            return ()
        starts.append(min(inside))
    ends = [*starts[1:], end]
    if any(end <= start for start, end in zip(starts, ends, strict=True)):
        return ()
    return tuple(
        Word(start, end - start, word)
        for start, end, (_, _, word) in zip(starts, ends, spans, strict=True)
    )


def place_phones(events: Sequence[PhoneEvent], speech: Samples, rate: int) -> tuple[Word, ...]:
    """Give phones their stretches of the speech.

    A phone lasts to the next event. Silence before a phone is its own (espeak-ng tells the release
    of a stop, whose closure would else be the vowel's before it), but no more than half of the time
    since the event before.

    Args:
        events: Where the synthesizer began phones and pauses, in their order.
        speech: ``(samples,)``, to its last sound.
        rate: Hz.

    Returns:
        The phones, without overlaps; none where the events are out of order.
    """
    times = [event.start for event in events]
    if times != sorted(times):
        return ()
    loud = np.flatnonzero(np.abs(speech) > _QUIET * np.abs(speech).max())
    starts = times.copy()
    for i in range(1, len(events)):
        if events[i].symbol and events[i - 1].symbol:
            last = np.searchsorted(loud, times[i] * rate) - 1  # sound before the event
            silent_from = (loud[last] + 1) / rate if last >= 0 else 0.0
            starts[i] = min(times[i], max(silent_from, (times[i - 1] + times[i]) / 2))
    ends = [*starts[1:], len(speech) / rate]
    return tuple(
        Word(float(start), float(min(end, len(speech) / rate) - start), event.symbol)
        for event, start, end in zip(events, starts, ends, strict=True)
        if event.symbol and min(end, len(speech) / rate) > start
    )


def encode(samples: Samples, rate: int, suffix: str) -> bytes:
    """Encode mono samples as ``.mp3``, ``.flac``, ``.opus`` or ``.m4a`` (AAC).

    The same samples give the same bytes, but for opus: libsndfile draws a serial number for each
    Ogg stream. What is decoded is the same there too.
    """
    buffer = io.BytesIO()
    if suffix == ".m4a":
        _encode_aac(buffer, samples, rate)
    else:
        container, subtype = _FORMATS[suffix]
        soundfile.write(buffer, samples, rate, format=container, subtype=subtype)
    return buffer.getvalue()


def _encode_aac(buffer: io.BytesIO, samples: Samples, rate: int) -> None:
    import av

    with av.open(buffer, "w", format="ipod") as container:
        # The default coder takes more than twice the time, and is not nearer to the samples.
        coder = {"aac_coder": "fast"}
        stream = container.add_stream("aac", rate=rate, layout="mono", options=coder)
        stream.bit_rate = _AAC_BIT_RATE
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        container.mux([*stream.encode(frame), *stream.encode(None)])


@cache
def _synthesizer(language: str) -> Synthesizer:
    """Start espeak-ng with a language loaded, so that not every child has to."""
    speak = _engine()
    speak.load(language)
    return speak


@cache
def _engine() -> Synthesizer:
    import espeakng_loader

    speak = Synthesizer()
    # Starting it seeds its random numbers (breath, flutter) with the time.
    ctypes.CDLL(espeakng_loader.get_library_path()).espeak_ng_SetRandSeed(1)
    return speak


def _speak_afresh(
    text: str, language: str, voice: Voice, rate: int
) -> tuple[Samples, list[WordEvent], list[PhoneEvent]]:
    """Speak in a child process, from the state espeak-ng was in before its first sentence.

    It carries echo, flutter and breath over from each sentence to the next, and cannot be reset:
    in one process a sentence sounds otherwise after other sentences.
    """
    speak = _synthesizer(language)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "wb") as stream:
                samples = speak.at(rate, text, language, voice).astype("<f4")
                words = [(event.position, event.start) for event in speak.words]
                phones = [(event.symbol, event.start) for event in speak.phones]
                stream.write(json.dumps([words, phones]).encode() + b"\n")
                stream.write(samples.tobytes())
            status = 0
        finally:
            os._exit(status)  # and run nothing that the parent has to run
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        header, data = stream.readline(), stream.read()
    if os.waitpid(child, 0)[1] != 0 or not data:
        raise UserError(
            f"espeak-ng could not speak '{text}' ({language}, voice {voice.variant}); is the "
            "package espeakng-loader whole?"
        )
    words, phones = json.loads(header)
    return (
        np.frombuffer(data, "<f4"),
        [WordEvent(*event) for event in words],
        [PhoneEvent(*event) for event in phones],
    )
