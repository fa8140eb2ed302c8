"""How words sound, from their spelling, in the scripts whose spelling says it.

Devanagari, Gurmukhi and Telugu share the layout of ISCII (Bureau of Indian Standards, IS
13194:1991; The Unicode Standard, chapter 12): a letter has the same offset in every block, so that
one table serves all three. Italian spelling follows a handful of rules.

This is no pronouncing dictionary: stress, tone, schwas inside a word and the open and close e and o
of Italian are not told. It says which words sound alike, and which are near.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache

_BLOCKS = {0x0900: "hi", 0x0A00: "pa", 0x0C00: "te"}  # Devanagari, Gurmukhi, Telugu
_VOWEL_LETTERS = {
    **{0x05: "ə", 0x06: "ɑː", 0x07: "ɪ", 0x08: "iː", 0x09: "ʊ", 0x0A: "uː", 0x0D: "ɛ"},
    **{0x0E: "e", 0x0F: "eː", 0x10: "ɛː", 0x11: "ɔ", 0x12: "o", 0x13: "oː", 0x14: "ɔː"},
}
# Signs stand 0x38 behind their letters.
_VOWEL_SIGNS = {offset + 0x38: v for offset, v in _VOWEL_LETTERS.items() if offset > 0x05}
_FROM_KA = (
    *("k", "kʰ", "ɡ", "ɡʱ", "ŋ"),
    *("tʃ", "tʃʰ", "dʒ", "dʒʱ", "ɲ"),
    *("ʈ", "ʈʰ", "ɖ", "ɖʱ", "ɳ"),
    *("t̪", "t̪ʰ", "d̪", "d̪ʱ", "n", "n"),
    *("p", "pʰ", "b", "bʱ", "m"),
    *("j", "ɾ", "r", "l", "ɭ", "ɻ", "ʋ"),
    *("ʃ", "ʂ", "s", "ɦ"),
)
_CONSONANTS = {0x15 + i: symbol for i, symbol in enumerate(_FROM_KA)}  # ka … ha
_WITH_NUKTA = {
    **{"k": "q", "kʰ": "x", "ɡ": "ɣ", "dʒ": "z", "ɖ": "ɽ", "ɖʱ": "ɽʱ", "pʰ": "f"},
    **{"s": "ʃ", "l": "ɭ"},
}
_PRECOMPOSED = {0x58: "q", 0x59: "x", 0x5A: "ɣ", 0x5B: "z", 0x5C: "ɽ", 0x5D: "ɽʱ", 0x5E: "f"}
_NASALS = (0x01, 0x02, 0x70)  # candrabindu, anusvara or bindi, tippi
_LETTER_A, _VISARGA, _NUKTA, _VOCALIC_R, _VIRAMA, _ADDAK = 0x05, 0x03, 0x3C, 0x0B, 0x4D, 0x71


def script_of(word: str) -> str:
    """Script of a word's first letter, as Unicode names it (``LATIN``); empty without letters."""
    for character in word:
        if unicodedata.category(character)[0] == "L":
            return unicodedata.name(character, "").split(" ")[0]
    return ""


@cache
def pronounce(word: str, language: str) -> tuple[str, ...] | None:
    """Phones of a word from its spelling.

    Args:
        word: Normalised.
        language: Of the utterance: says how Latin letters are read. The Indic scripts are read as
            Hindi, Punjabi and Telugu.

    Returns:
        IPA symbols; ``None`` where no rules are known (English, other scripts, digits).
    """
    blocks = {ord(character) & ~0x7F for character in word}
    if len(blocks) == 1 and (block := blocks.pop()) in _BLOCKS:
        return _indic([ord(character) - block for character in word], _BLOCKS[block])
    if language == "it" and script_of(word) == "LATIN":
        return _italian(word)
    return None


def _indic(offsets: Sequence[int], language: str) -> tuple[str, ...] | None:
    """Phones of the letters' offsets in their block."""
    phones: list[str] = []
    inherent = "a" if language == "te" else "ə"
    pending = double = False  # a consonant without its vowel yet; an addak before
    for offset in offsets:
        consonant = _CONSONANTS.get(offset) or _PRECOMPOSED.get(offset)
        if offset == _NUKTA and phones:
            phones[-1] = _WITH_NUKTA.get(phones[-1], phones[-1])
        elif consonant is not None:
            if pending:
                phones.append(inherent)
            # Hindi and Punjabi read the retroflex sibilant as the postalveolar one.
            consonant = "ʃ" if consonant == "ʂ" and language != "te" else consonant
            phones += [consonant] * (2 if double else 1)
            pending, double = True, False
        elif offset in _VOWEL_SIGNS:
            phones.append(_VOWEL_SIGNS[offset])
            pending = False
        elif offset in _VOWEL_LETTERS:
            phones += [inherent] if pending else []
            phones.append(inherent if offset == _LETTER_A else _VOWEL_LETTERS[offset])
            pending = False
        elif offset in (_VOCALIC_R, _VOCALIC_R + 0x38):
            if pending and offset == _VOCALIC_R:
                phones.append(inherent)
            phones += ["ɾ", "ʊ" if language == "te" else "ɪ"]
            pending = False
        elif offset == _VIRAMA:
            pending = False
        elif offset == _ADDAK:
            if pending:
                phones.append(inherent)
            pending, double = False, True
        elif offset in _NASALS:
            if pending:
                phones.append(inherent)
            phones.append("n")  # of the place of what follows, which spelling leaves open
            pending = False
        elif offset == _VISARGA:
            phones += [inherent, "ɦ"] if pending else ["ɦ"]
            pending = False
        else:
            return None
    # Telugu says the vowel of a last consonant; Hindi and Punjabi do not, but in words of one.
    if pending and (language == "te" or len(phones) == 1):
        phones.append(inherent)
    return tuple(phones)


_ITALIAN = {
    **{"b": "b", "d": "d", "f": "f", "j": "j", "k": "k", "l": "l", "m": "m", "n": "n", "p": "p"},
    **{"q": "k", "r": "r", "s": "s", "t": "t", "v": "v", "w": "w", "y": "i", "z": "ts"},
    **dict(zip("aeiou", "aeiou", strict=True)),
}


def _italian(word: str) -> tuple[str, ...] | None:
    """Phones of Italian spelling; a double consonant is two."""
    letters = unicodedata.normalize("NFD", word)
    text = "".join(c for c in letters if unicodedata.category(c)[0] == "L")
    phones: list[str] = []
    i = 0
    while i < len(text):
        letter, rest = text[i], text[i + 1 :]
        soft = rest[:1] in ("e", "i")
        silent_i = rest[:1] == "i" and rest[1:2] in tuple("aeou")
        if letter in "cg" and rest[:1] == letter and rest[1:2] in ("e", "i"):
            phones.append("tʃ" if letter == "c" else "dʒ")
            i += 1
        elif letter == "g" and rest[:1] == "n":
            phones.append("ɲ")
            i += 2
        elif letter == "g" and rest[:2] == "li":
            phones += ["ʎ"] if rest[2:3] in tuple("aeou") else ["ʎ", "i"]
            i += 3
        elif letter == "s" and rest[:1] == "c" and rest[1:2] in ("e", "i"):
            phones.append("ʃ")
            i += 3 if rest[1:2] == "i" and rest[2:3] in tuple("aeou") else 2
        elif letter in "cg":
            hard = "k" if letter == "c" else "ɡ"
            phones.append(("tʃ" if letter == "c" else "dʒ") if soft else hard)
            i += 2 if soft and silent_i else 1
        elif letter == "q" and rest[:1] == "u":
            phones += ["k", "w"]
            i += 2
        elif letter == "x":
            phones += ["k", "s"]
            i += 1
        elif letter == "h":
            i += 1
        elif letter in _ITALIAN:
            phones.append(_ITALIAN[letter])
            i += 1
        else:
            return None
    return tuple(phones)
