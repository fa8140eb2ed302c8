"""Which language a word is in, for a reader's fonts and voice: told by its script."""

import re
import unicodedata
from collections.abc import Sequence

from markupsafe import Markup, escape

from espnet_moe.scoring.mixed_text import SCRIPTS

_LATIN = "LATIN"
_ALONE = {script: language for language, script in SCRIPTS.items() if script != _LATIN}
# Runs of letters that no Latin text has, with the signs and spaces between them.
_RUN = re.compile(r"[^\x00-\u08ff\u2000-\u2bff]+(?:[ \u200c\u200d]+[^\x00-\u08ff\u2000-\u2bff]+)*")


def language_of(word: str, languages: Sequence[str]) -> str:
    """Return the language to mark a word with.

    Args:
        word: Of a reference or hypothesis: a system may have answered in another script.
        languages: Those of its utterance.
    """
    for character in word:
        script = unicodedata.name(character, "").split(" ")[0]
        fitting = [each for each in languages if SCRIPTS.get(each) == script]
        if fitting:
            return fitting[0]
        if script in _ALONE:
            return _ALONE[script]
    return languages[0] if languages else ""


def marked(text: object) -> Markup:
    """Escape text, and mark what it holds in the scripts of one known language."""
    parts, last = [], 0
    whole = str(text)
    for run in _RUN.finditer(whole):
        language = language_of(run[0], ())
        if language:
            parts.append(escape(whole[last : run.start()]))
            parts.append(Markup('<span lang="{}">{}</span>').format(language, run[0]))
            last = run.end()
    return Markup("").join([*parts, escape(whole[last:])])
