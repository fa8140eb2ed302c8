"""One spoken sentence: the unit that every corpus is read into."""

import re
from dataclasses import dataclass
from typing import Literal

Seconds = float
SAMPLE_RATE = 16000  # Hz, of all formatted audio
Gender = Literal["m", "f"]

_UNSAFE = re.compile(r"[^0-9A-Za-z_]+")


@dataclass(frozen=True, slots=True)
class Utterance:
    """A recording with its transcript.

    Attributes:
        utt_id: Unique name, ``<speaker>-<rest>`` (so that sorting utterances sorts speakers, as
            Kaldi asks), without white space.
        audio: Path of the audio file, or of a part of one (``espnet_moe.data.sources``).
        text: Transcript, as the corpus writes it.
        speaker: Speaker name, unique over corpora, without white space or ``-``.
        language: ISO 639-1 code.
        split: ``train``, ``dev``, ``test``, or a corpus's own further test set.
        gender: ``m``, ``f``, or ``None`` where the corpus does not say.
        duration: Seconds, or ``None`` where not known without decoding.
    """

    utt_id: str
    audio: str
    text: str
    speaker: str
    language: str
    split: str
    gender: Gender | None = None
    duration: Seconds | None = None


def safe_id(text: str) -> str:
    """Return ``text`` with every run of characters an identifier may not hold as one ``_``."""
    return _UNSAFE.sub("_", text)


def is_test(name: str) -> bool:
    """Whether a set of this name is a test set: it begins with ``test`` or holds ``_test``."""
    return name.startswith("test") or "_test" in name


def split_of(name: str) -> str:
    """Return the split (``train``, ``dev`` or ``test``) that a set's name tells.

    Examples:
        >>> split_of("commonvoice_hi_test"), split_of("dev_it"), split_of("train_hi_sp")
        ('test', 'dev', 'train')
    """
    if is_test(name):
        return "test"
    if name.startswith(("dev", "valid")) or "_dev" in name or "_valid" in name:
        return "dev"
    return "train"
