"""Text normalisation for training targets and scoring: one function for both sides.

Whisper's own normaliser must not be used for Indic scripts: it turns every mark (matras, virama,
nukta, anusvara) into a space, splits the words, and lowers the WER. Here every mark is kept.
"""

import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from typing import Literal

from espnet_moe.errors import UserError

NORMALIZER = "espnet_moe-1"  # written into every result; raise the number when a rule changes
INDIC = ("hi", "pa", "te")
LANGUAGES = ("en", "hi", "it", "pa", "te")

_APOSTROPHES = "'’‘ʼ"
_ZERO_WIDTH_SPACE, _BACKWARD_BYTE_ORDER_MARK = "\u200b", "\ufffe"


class LanguageError(UserError):
    """A language that has no text normaliser."""


def normalize(text: str, language: str) -> str:
    """Bring a transcript into the form that is trained on and scored.

    - hi, pa, te: NFC, punctuation and symbols (P*, S*) removed, indic-nlp-library's normaliser,
      punctuation and symbols removed again (it makes some), native digits as ASCII, NFC.
    - it, en: NFC (en: NFKC), lower case, ``’‘ʼ`` as ``'``, hyphens, dashes and slashes as spaces,
      other punctuation and symbols removed; accents and ``'`` kept.
    - all: invisible format characters removed (ZWJ, ZWNJ, byte-order marks), runs of white space
      as one space. Every mark (M*) is kept. The result is NFC, and normalising it again changes
      nothing.

    Args:
        text: Any text.
        language: ISO 639-1 code, one of ``LANGUAGES``.

    Returns:
        The normalised text, possibly empty.

    Raises:
        LanguageError: When the language is not one of ``LANGUAGES``.
    """
    once = _pass_of(language)
    # What one rule removes can bring together characters that an earlier rule joins (a Gurmukhi
    # vowel sign and its bearer with a reserved character between them): repeat until nothing moves.
    while (result := once(text)) != text:
        text = result
    return result


def check_languages(languages: Iterable[str]) -> None:
    """Check that every language has a normaliser.

    Raises:
        LanguageError: When some have none; all are named.
    """
    if unknown := sorted(set(languages) - set(LANGUAGES)):
        raise LanguageError(
            f"no text normaliser for language {', '.join(map(repr, unknown))}; supported are the "
            f"ISO 639-1 codes {', '.join(LANGUAGES)}"
        )


@cache
def _pass_of(language: str) -> Callable[[str], str]:
    check_languages([language])
    return _indic(language) if language in INDIC else _latin(language)


def _indic(language: str) -> Callable[[str], str]:
    from indicnlp.normalize.indic_normalize import IndicNormalizerFactory

    library = IndicNormalizerFactory().get_normalizer(language)
    strip, digits = _Table(_stripped), _Table(_ascii_digit)

    def once(text: str) -> str:
        text = unicodedata.normalize("NFC", text).translate(strip)
        text = library.normalize(text).translate(strip).translate(digits)
        return unicodedata.normalize("NFC", " ".join(text.split()))

    return once


def _latin(language: str) -> Callable[[str], str]:
    form: Literal["NFC", "NFKC"] = "NFKC" if language == "en" else "NFC"
    strip = _Table(_stripped_latin)

    def once(text: str) -> str:
        text = unicodedata.normalize(form, text).lower().translate(strip)
        return unicodedata.normalize(form, " ".join(text.split()))

    return once


class _Table(dict[int, str]):
    """A ``str.translate`` table that asks a rule about each character once."""

    def __init__(self, rule: Callable[[str], str]) -> None:
        super().__init__()
        self._rule = rule

    def __missing__(self, code: int) -> str:
        self[code] = self._rule(chr(code))
        return self[code]


def _stripped(character: str) -> str:
    """Punctuation, symbols, format characters to nothing; control characters to a space."""
    category = unicodedata.category(character)
    if character == _ZERO_WIDTH_SPACE or category in ("Cc", "Cs"):
        return " "
    if category[0] in "PS" or category == "Cf" or character == _BACKWARD_BYTE_ORDER_MARK:
        return ""
    return character


def _stripped_latin(character: str) -> str:
    if character in _APOSTROPHES:
        return "'"
    if character == "/" or unicodedata.category(character) == "Pd":
        return " "
    return _stripped(character)


def _ascii_digit(character: str) -> str:
    return str(unicodedata.decimal(character)) if character.isdecimal() else character
