"""Speech for the mini corpus: espeak-ng voices, their partition between splits, and synthesis.

espeak-ng (library and data of the package ``espeakng-loader``: no root, no network) has some
hundred voice variants. Every variant belongs to one split only, so that no split hears a voice of
another; within a split, speakers differ by variant, pitch, and speed.
"""

import ctypes
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import soxr

from espnet_moe.data.utterance import Seconds
from espnet_moe.errors import UserError

LANGUAGES = ("en", "hi", "it", "pa", "te")
SPLITS = ("base", "train", "dev", "test")
VARIANTS = {"test": 13, "dev": 13, "train": 26}  # the rest is for the base
# Effects rather than voices (whispering, robots): heard in pre-training only, so that a recipe's
# speakers stay people.
_EFFECTS = ("Demonic", "whisper", "whisperf", "croak", "AnxiousAndy", "UniRobot", "anikaRobot")
_FAMILIES = ("robosoft", "klatt", "iven", "RicishayMax")

_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_SYNCHRONOUS, _DONT_EXIT = 2, 0x8000
_PHONEME_EVENTS, _IPA = 1, 2  # options of espeak_Initialize: neither changes a sample
_UTF8 = 1
_LIST_END, _WORD, _PHONEME = 0, 1, 7  # espeak_EVENT_TYPE
# What espeak-ng writes where its table of a language lacks the symbol of the IPA.
_NOT_IPA = {"r.": "ɽ"}
# Its IPA of Hindi, which Punjabi and Telugu inherit, is broader than its sounds: phsource/ph_hindi
# has `t` and `d` as dental stops, `c` and `J` as affricates. So do Ohala ("Hindi", Handbook of the
# IPA, 1999: t̪ d̪ tʃ dʒ) and Krishnamurti and Gwynn (A grammar of modern Telugu, 1985). Voiced
# stops are breathy, not aspirated.
_NARROWER = {
    **{"t": "t̪", "tʰ": "t̪ʰ", "d": "d̪", "dʰ": "d̪ʱ"},
    **{"c": "tʃ", "cʰ": "tʃʰ", "ɟ": "dʒ", "ɟʰ": "dʒʱ"},
    **{"bʰ": "bʱ", "ɖʰ": "ɖʱ", "ɡʰ": "ɡʱ"},
}
_INDIC = ("hi", "pa", "te")


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h; the last of a list has the type 0."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters, from 1
        ("length", ctypes.c_int),  # of a word, characters
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),  # of a phoneme its symbol, UTF-8
    ]


@dataclass(frozen=True, slots=True)
class WordEvent:
    """Where espeak-ng begins a word.

    Attributes:
        position: Of its first character in the text, from 0.
        start: Seconds from the beginning of the speech.
    """

    position: int
    start: Seconds


@dataclass(frozen=True, slots=True)
class PhoneEvent:
    """Where espeak-ng begins a phone, or a pause.

    Attributes:
        symbol: IPA without stress, as espeak-ng tells it; stops and affricates of the Indic
            languages as :func:`espnet_moe.analysis.spelling.pronounce` does. Empty for a pause.
        start: Seconds from the beginning of the speech. Of a vowel it is behind the transition from
            the consonant before it, of a stop its release.
    """

    symbol: str
    start: Seconds


@dataclass(frozen=True)
class Voice:
    """A speaker.

    Attributes:
        speaker: Name, unique over all splits.
        variant: espeak-ng's voice variant (timbre).
        pitch: 0-99, espeak-ng's scale.
        speed: Words per minute.
        gender: ``m`` or ``f``.
    """

    speaker: str
    variant: str
    pitch: int
    speed: int
    gender: str


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def variants(split: str) -> tuple[str, ...]:
    """The espeak-ng variants of a split, disjoint between splits, the same on every machine."""
    import espeakng_loader

    if split not in SPLITS:
        raise UserError(f"split '{split}' is unknown: choose one of {', '.join(SPLITS)}")
    folder = os.path.join(espeakng_loader.get_data_path(), "voices", "!v")
    people = [
        name
        for name in sorted(os.listdir(folder), key=_hash)
        if name not in _EFFECTS and not name.startswith(_FAMILIES)
    ]
    start = 0
    for name, count in VARIANTS.items():
        if split == name:
            return tuple(people[start : start + count])
        start += count
    rest = [n for n in sorted(os.listdir(folder), key=_hash) if n not in people[:start]]
    return tuple(rest)


@cache
def voices(split: str) -> tuple[Voice, ...]:
    """The speakers of a split: two a variant in training, with pitch and speed apart."""
    found = []
    for variant in variants(split):
        for copy in range(2 if split in ("base", "train") else 1):
            draw = np.random.default_rng(int(_hash(f"{variant}/{copy}")[:8], 16))
            name = _hash(f"voice {variant} {copy}")
            found.append(
                Voice(
                    speaker=str(100000 + int(name[:8], 16) % 900000),
                    variant=variant,
                    pitch=int(draw.integers(25, 50) + 25 * copy),
                    speed=int(draw.integers(130, 190)),
                    gender="f" if _is_female(variant) else "m",
                )
            )
    return tuple(found)


@cache
def _is_female(variant: str) -> bool:
    import espeakng_loader

    path = os.path.join(espeakng_loader.get_data_path(), "voices", "!v", variant)
    with open(path, encoding="utf-8", errors="replace") as lines:
        return any(line.startswith("gender") and "female" in line for line in lines)


class Synthesizer:
    """espeak-ng in this process (its state is global: one a process).

    Attributes:
        sample_rate: Of the engine, 22050 Hz.
        words: Where the words of the last text begin. The engine may say two as one, or one in
            parts.
        phones: Where its phones and pauses begin.
    """

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.sample_rate = self._library.espeak_Initialize(
            _SYNCHRONOUS, 0, data, _DONT_EXIT | _PHONEME_EVENTS | _IPA
        )
        if self.sample_rate <= 0:
            raise UserError("espeak-ng could not be started: is the package espeakng-loader whole?")
        self._chunks: list[np.ndarray] = []
        self.words: list[WordEvent] = []
        self.phones: list[PhoneEvent] = []
        samples = ctypes.POINTER(ctypes.c_short)
        events = ctypes.POINTER(_Event)
        prototype = ctypes.CFUNCTYPE(ctypes.c_int, samples, ctypes.c_int, events)
        # Held, because the library keeps a pointer to it.
        self._callback = prototype(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(
        self,
        samples: "ctypes._Pointer[ctypes.c_short]",
        count: int,
        events: "ctypes._Pointer[_Event]",
    ) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events and (event := events[index]).type != _LIST_END:
            start = event.sample / self.sample_rate
            if event.type == _WORD:
                self.words.append(WordEvent(event.text_position - 1, start))
            elif event.type == _PHONEME:
                symbol = event.id.decode(errors="ignore").lstrip("ˈˌ")
                self.phones.append(PhoneEvent(_NOT_IPA.get(symbol, symbol), start))
            index += 1
        return 0

    def load(self, language: str) -> None:
        """Load a language, so that forked processes need not each do so.

        Raises:
            UserError: For a language without a voice.
        """
        if language not in LANGUAGES:
            raise UserError(f"no voice for '{language}': choose one of {', '.join(LANGUAGES)}")
        self._library.espeak_SetVoiceByName(language.encode())

    def __call__(self, text: str, language: str, voice: Voice) -> np.ndarray:
        """Speak.

        Args:
            text: In the language's native script.
            language: One of ``LANGUAGES``.
            voice: Who speaks.

        Returns:
            ``(samples,)`` float32 in [-1, 1] at :attr:`sample_rate`.

        Raises:
            UserError: For a language without a voice, or a text that gives no sound.
        """
        if language not in LANGUAGES:
            raise UserError(f"no voice for '{language}': choose one of {', '.join(LANGUAGES)}")
        self._chunks.clear()
        self.words.clear()
        self.phones.clear()
        self._library.espeak_SetVoiceByName(f"{language}+{voice.variant}".encode())
        self._library.espeak_SetParameter(_RATE, voice.speed, 0)
        self._library.espeak_SetParameter(_PITCH, voice.pitch, 0)
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, 0, 0, _UTF8, None, None)
        # Of a text without words it makes a little silence.
        if not any(chunk.any() for chunk in self._chunks):
            raise UserError(f"espeak-ng gave no sound for '{text}' ({language})")
        if language in _INDIC:
            told = ((_NARROWER.get(e.symbol, e.symbol), e.start) for e in self.phones)
            self.phones[:] = [PhoneEvent(*event) for event in told]
        return np.concatenate(self._chunks).astype(np.float32) / 32768.0

    def at(self, sample_rate: int, text: str, language: str, voice: Voice) -> np.ndarray:
        """Speak at another sample rate."""
        return soxr.resample(self(text, language, voice), self.sample_rate, sample_rate)


def add_noise(speech: np.ndarray, snr_db: float, draw: np.random.Generator) -> np.ndarray:
    """Add noise with a random spectral tilt (white to brown) at a signal-to-noise ratio in dB."""
    spectrum = np.fft.rfft(draw.standard_normal(len(speech)))
    tilt = draw.uniform(0.0, 1.0)
    spectrum /= np.maximum(np.arange(len(spectrum)), 1.0) ** tilt
    noise = np.fft.irfft(spectrum, len(speech))
    gain = np.sqrt(np.mean(speech**2) / (np.mean(noise**2) * 10 ** (snr_db / 10) + 1e-12))
    return (speech + gain * noise).astype(np.float32)


def rotation(split: str) -> Iterator[Voice]:
    """The voices of a split in turn, for ever."""
    while True:
        yield from voices(split)
