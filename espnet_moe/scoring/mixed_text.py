"""Normalising texts in which several languages meet."""

import unicodedata
from collections.abc import Sequence

from espnet_moe.data.normalize import normalize

# The first word of the names that Unicode gives to the letters of a script.
SCRIPTS = {"en": "LATIN", "hi": "DEVANAGARI", "it": "LATIN", "pa": "GURMUKHI", "te": "TELUGU"}


def normalize_mixed(text: str, languages: Sequence[str]) -> str:
    """Normalise each word by the rules of the languages that are written in its script.

    Whole texts could not be given to one language's rules after the other's: those of the Indic
    languages take the apostrophe out of ``l'acqua``. A word in none of the languages' scripts
    passes through the rules of all of them.

    Args:
        text: Any text.
        languages: Those of the utterance, in its order.

    Returns:
        The normalised text, possibly empty. Text joined of parts that were normalised by their own
        languages stays as it is.

    Raises:
        LanguageError: When a language has no normaliser.
    """
    if len(languages) == 1:
        return normalize(text, languages[0])
    words = []
    for word in text.split():
        scripts = {unicodedata.name(character, "").split(" ")[0] for character in word}
        fitting = [each for each in languages if SCRIPTS.get(each) in scripts]
        for language in fitting or languages:
            word = normalize(word, language)
        words.append(word)
    return " ".join(" ".join(words).split())
