"""Recordings of the mini corpus: a sentence spoken, varied, and encoded, always the same way."""

import ctypes
import hashlib
import io
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from espnet_moe.data.files import write_bytes
from espnet_moe.data.mini_voices import Synthesizer, Voice, add_noise
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


def draw_of(*key: object) -> np.random.Generator:
    """Return random numbers that follow from a key alone, on every machine."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def share_of(*key: object) -> float:
    """Return a number in [0, 1) that follows from a key alone."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def record(job: Job) -> Seconds:
    """Make a file, unless it is there; either way say how long it is.

    To be called in a process that does nothing else (espeak-ng is global to a process).

    Args:
        job: The file to make.

    Returns:
        Its duration.

    Raises:
        UserError: When espeak-ng cannot speak the text.
        OSError: When the file cannot be written.
    """
    samples = perform(job)
    path = Path(job.path)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, encode(samples, job.rate, path.suffix))
    return len(samples) / job.rate


def perform(job: Job) -> Samples:
    """Speak a sentence with a little less or more pitch, speed, silence, volume and noise.

    Returns:
        ``(samples,)`` float32 in [-1, 1] at the job's rate, a multiple of 10 ms.
    """
    draw = draw_of("recording", job.key)
    pitch, speed = draw.uniform(1 - JITTER, 1 + JITTER, size=2)
    voice = replace(
        job.voice,
        pitch=min(99, round(job.voice.pitch * pitch)),
        speed=round(job.voice.speed * speed),
    )
    speech = _speak_afresh(job.text, job.language, voice, job.rate)
    speech = speech * np.float32(draw.uniform(*PEAK) / np.abs(speech).max())
    before, after = (draw.uniform(0, MAX_SILENCE, size=2) * job.rate).astype(int)
    after += -(before + len(speech) + after) % (job.rate // _HOPS_PER_SECOND)
    speech = np.pad(speech, (before, after))
    if draw.random() < NOISY_SHARE:
        speech = add_noise(speech, draw.uniform(*SNR), draw)
    if job.street:
        speech = add_noise(speech, draw.uniform(*STREET_SNR), draw)
    return np.clip(speech, -1.0, 1.0)


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
        stream = container.add_stream("aac", rate=rate, layout="mono")
        stream.bit_rate = _AAC_BIT_RATE
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        container.mux([*stream.encode(frame), *stream.encode(None)])


@cache
def _synthesizer() -> Synthesizer:
    import espeakng_loader

    speak = Synthesizer()
    # Starting it seeds its random numbers (breath, flutter) with the time.
    ctypes.CDLL(espeakng_loader.get_library_path()).espeak_ng_SetRandSeed(1)
    return speak


def _speak_afresh(text: str, language: str, voice: Voice, rate: int) -> Samples:
    """Speak in a child process, from the state espeak-ng was in before its first sentence.

    It carries echo, flutter and breath over from each sentence to the next, and cannot be reset:
    in one process a sentence sounds otherwise after other sentences.
    """
    speak = _synthesizer()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "wb") as stream:
                stream.write(speak.at(rate, text, language, voice).astype("<f4").tobytes())
            status = 0
        finally:
            os._exit(status)  # and run nothing that the parent has to run
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        data = stream.read()
    if os.waitpid(child, 0)[1] != 0 or not data:
        raise UserError(
            f"espeak-ng could not speak '{text}' ({language}, voice {voice.variant}); is the "
            "package espeakng-loader whole?"
        )
    return np.frombuffer(data, "<f4")
