"""Phones of the IPA, their features, and how far apart they are.

Features are those of the IPA chart (International Phonetic Association, Handbook of the IPA,
Cambridge University Press 1999): place, manner and voicing of consonants; height, backness and
rounding of vowels; aspiration, length and nasality by their diacritics.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from espnet_moe.errors import UserError


@dataclass(frozen=True)
class Consonant:
    """A consonant's place in the chart."""

    place: str
    manner: str
    voiced: bool
    aspirated: bool = False


@dataclass(frozen=True)
class Vowel:
    """A vowel's place in the chart."""

    height: str
    backness: str
    rounded: bool
    long: bool = False
    nasal: bool = False


Phone = Consonant | Vowel

_PLACES = {
    "bilabial": {
        **{"p": "plosive", "b": "plosive", "m": "nasal", "ɸ": "fricative", "β": "fricative"},
    },
    "labiodental": {"f": "fricative", "v": "fricative", "ʋ": "approximant"},
    "dental": {"t̪": "plosive", "d̪": "plosive", "θ": "fricative", "ð": "fricative"},
    "alveolar": {
        **{"t": "plosive", "d": "plosive", "n": "nasal", "r": "trill", "ɾ": "tap"},
        **{"s": "fricative", "z": "fricative", "ts": "affricate", "dz": "affricate"},
        **{"l": "lateral approximant", "ɹ": "approximant"},
    },
    "postalveolar": {
        **{"ʃ": "fricative", "ʒ": "fricative", "tʃ": "affricate", "dʒ": "affricate"},
    },
    "retroflex": {
        **{"ʈ": "plosive", "ɖ": "plosive", "ɳ": "nasal", "ɽ": "tap", "ʂ": "fricative"},
        **{"ʐ": "fricative", "ɻ": "approximant", "ɭ": "lateral approximant"},
    },
    "alveolo-palatal": {
        **{"ɕ": "fricative", "ʑ": "fricative", "tɕ": "affricate", "dʑ": "affricate"},
    },
    "palatal": {
        **{"c": "plosive", "ɟ": "plosive", "ɲ": "nasal", "c\u0327": "fricative", "ʝ": "fricative"},
        **{"j": "approximant", "ʎ": "lateral approximant"},
    },
    "velar": {"k": "plosive", "ɡ": "plosive", "ŋ": "nasal", "x": "fricative", "ɣ": "fricative"},
    "labial-velar": {"w": "approximant"},
    "uvular": {"q": "plosive", "ɢ": "plosive", "χ": "fricative", "ʁ": "fricative", "ʀ": "trill"},
    "glottal": {"ʔ": "plosive", "h": "fricative", "ɦ": "fricative"},
}
_VOICELESS = frozenset(
    (
        *("p", "ɸ", "f", "t̪", "θ", "t", "s", "ts", "ʃ", "tʃ", "ʈ", "ʂ", "ɕ", "tɕ", "c", "c\u0327"),
        *("k", "x", "q", "χ", "ʔ", "h"),
    )
)
_VOWELS = {
    "i": ("close", "front", False),
    "y": ("close", "front", True),
    "ɨ": ("close", "central", False),
    "ʉ": ("close", "central", True),
    "ɯ": ("close", "back", False),
    "ʏ": ("near-close", "near-front", True),
    "ɪ": ("near-close", "near-front", False),
    "e": ("close-mid", "front", False),
    "ø": ("close-mid", "front", True),
    "ɤ": ("close-mid", "back", False),
    "œ": ("open-mid", "front", True),
    "ɜ": ("open-mid", "central", False),
    "ʌ": ("open-mid", "back", False),
    "æ": ("near-open", "front", False),
    "ɐ": ("near-open", "central", False),
    "ɒ": ("open", "back", True),
    "ɛ": ("open-mid", "front", False),
    "a": ("open", "front", False),
    "ə": ("mid", "central", False),
    "ɑ": ("open", "back", False),
    "ɔ": ("open-mid", "back", True),
    "o": ("close-mid", "back", True),
    "ʊ": ("near-close", "near-back", True),
    "u": ("close", "back", True),
}


@cache
def phone(symbol: str) -> Phone | None:
    """Features of an IPA symbol with ``ʰ``, ``ʱ``, ``ː`` and ``◌̃``; ``None`` for an unknown one.

    Stress is left out. Diphthongs have no one place in the chart: they are unknown.
    """
    bare = unicodedata.normalize("NFD", symbol).lstrip("ˈˌ")
    nasal, long = "\u0303" in bare, "ː" in bare
    bare = bare.replace("\u0303", "").replace("ː", "").replace("͡", "").replace("g", "ɡ")
    if bare in _VOWELS:
        height, backness, rounded = _VOWELS[bare]
        return Vowel(height, backness, rounded, long, nasal)
    aspirated = bare.endswith(("ʰ", "ʱ"))
    bare = bare.rstrip("ʰʱ")
    for place, manners in _PLACES.items():
        if bare in manners:
            return Consonant(place, manners[bare], bare not in _VOICELESS, aspirated)
    return None


def features(symbol: str) -> dict[str, str]:
    """Values by name of a feature, for labels of probes; empty for an unknown symbol.

    ``kind`` (vowel, consonant) and the fields of :class:`Vowel` or :class:`Consonant`.
    """
    found = phone(symbol)
    if found is None:
        return {}
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    told = {k: str(v).lower() if isinstance(v, bool) else v for k, v in values.items()}
    return {"kind": "vowel" if isinstance(found, Vowel) else "consonant", **told}


def read_features(path: Path) -> dict[str, dict[str, str]]:
    """Read a table of phones: columns between tabs, with a header.

    The first column is ``phone``, the others are features, such as ``voiced``; an empty cell says
    that a phone has no such feature.

    Raises:
        UserError: For a file that cannot be read or is of another layout, or a phone that is there
            twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    names = lines[0].split("\t") if lines else []
    if len(names) < 2 or names[0] != "phone" or len(set(names)) < len(names):
        raise UserError(f"{path}: the first line is phone and names of features, between tabs")
    found: dict[str, dict[str, str]] = {}
    for number, line in enumerate(lines[1:], 2):
        symbol, *values = line.split("\t")
        if len(values) != len(names) - 1 or not symbol:
            raise UserError(f"{path}:{number} has not the header's {len(names)} columns")
        if symbol in found:
            raise UserError(f"{path}:{number}: {symbol} is there a second time")
        found[symbol] = {k: v for k, v in zip(names[1:], values, strict=True) if v}
    return found


@cache
def phone_distance(first: str, second: str) -> float:
    """Share of features in which two phones differ; 1 for a vowel and a consonant, or unknown."""
    if first == second:
        return 0.0
    a, b = phone(first), phone(second)
    if a is None or b is None or type(a) is not type(b):
        return 1.0
    names = [field.name for field in fields(a)]
    return sum(getattr(a, name) != getattr(b, name) for name in names) / len(names)


def sequence_distance(first: Sequence[str], second: Sequence[str], of_phones: bool) -> float:
    """Edit distance a symbol of the longer sequence, 0 to 1.

    Args:
        first: Phones or characters.
        second: Likewise.
        of_phones: Whether a substitution costs :func:`phone_distance`, otherwise 1.
    """
    if not first and not second:
        return 0.0
    row = [float(j) for j in range(len(second) + 1)]
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], float(i)
        for j, b in enumerate(second, 1):
            cost = (phone_distance(a, b) if of_phones else 1.0) if a != b else 0.0
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + cost)
    return row[-1] / max(len(first), len(second))
