"""Normalisation: the rules on written examples, and what holds for any text."""

import random
import subprocess
import sys
import unicodedata

import pytest

from espnet_moe.data.normalize import LANGUAGES, LanguageError, check_languages, normalize
from espnet_moe.errors import UserError

BLOCKS = {
    "hi": (0x0900, 0x097F),
    "pa": (0x0A00, 0x0A7F),
    "te": (0x0C00, 0x0C7F),
    "it": (0x0020, 0x024F),
    "en": (0x0020, 0x024F),
}
# What transcripts have between letters: format characters, spaces, quotes, dashes, dandas.
EXTRAS = (
    "\u200b\u200c\u200d\ufeff\ufffe\u00a0\u2060\u00ad\u200e\u2028\x85\t\n '\"-/:|।॥۔…–—‘’“”´ʼ"
    "\u0301\u0307\u0130१੧౧€+$"
)


def random_texts(language: str, count: int = 1500) -> list[str]:
    generator = random.Random(f"texts {language}")
    first, last = BLOCKS[language]
    return [
        "".join(
            generator.choice(EXTRAS)
            if generator.random() < 0.3
            else chr(generator.randint(first, last))
            for _ in range(generator.randint(0, 16))
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("hi", "यह मेरा घर है।", "यह मेरा घर है"),
        ("hi", "क्या, आप: ठीक हैं? | हाँ॥", "क्या आप ठीक हैं हाँ"),
        ("hi", "“नमस्ते” ‘जी’ … —", "नमस्ते जी"),
        ("hi", "कमरा १२३", "कमरा 123"),
        ("hi", "क\u094d\u200dष क\u094d\u200cष\ufeff", "क\u094dष क\u094dष"),
        ("hi", "एक\u00a0दो\u200bतीन", "एक दो तीन"),
        ("hi", "दुःख", "दुःख"),  # a visarga is no colon
        ("pa", "ਸਤਿ ਸ੍ਰੀ ਅਕਾਲ।", "ਸਤਿ ਸ੍ਰੀ ਅਕਾਲ"),
        ("pa", "\u0a05\u0a3e\u0a2a \u0a73\u0a41", "\u0a06\u0a2a \u0a09"),
        ("pa", "੧੨ ਵਜੇ", "12 ਵਜੇ"),
        ("te", "నమస్తే, ఎలా ఉన్నారు?", "నమస్తే ఎలా ఉన్నారు"),
        ("te", "౧౨ \u0c15\u0c46\u0c56", "12 \u0c15\u0c48"),
        ("it", "L’Italia è un’isola? No!", "l'italia è un'isola no"),
        ("it", "Perche\u0301 «mai»: sud-est e/o nord–ovest…", "perché mai sud est e o nord ovest"),
        ("it", "LʼÀNCORA  costa\u00a05 €", "l'àncora costa 5"),
        ("en", "Don’t ﬁnd—“it”, OK?", "don't find it ok"),
    ],
)
def test_rules(language: str, text: str, expected: str) -> None:
    assert normalize(text, language) == unicodedata.normalize("NFC", expected)


def test_composed_and_decomposed_nukta_letters_are_one_spelling() -> None:
    # NFC composes three of them and decomposes the others: both spellings must meet.
    for composed in "\u0929\u0931\u0934\u0958\u0959\u095a\u095b\u095c\u095d\u095e\u095f":
        assert normalize(composed, "hi") == normalize(unicodedata.normalize("NFD", composed), "hi")
    for composed in "\u0a33\u0a36\u0a59\u0a5a\u0a5b\u0a5e":
        assert normalize(composed, "pa") == normalize(unicodedata.normalize("NFD", composed), "pa")


@pytest.mark.parametrize("language", LANGUAGES)
def test_normalising_twice_changes_nothing(language: str) -> None:
    for text in random_texts(language):
        once = normalize(text, language)
        assert normalize(once, language) == once, ascii(text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_result_is_nfc_without_punctuation_and_on_one_line(language: str) -> None:
    for text in random_texts(language):
        result = normalize(text, language)
        assert unicodedata.is_normalized("NFC", result), ascii(text)
        assert result == " ".join(result.split())
        categories = {unicodedata.category(c) for c in result if c != "'" or language in BLOCKS}
        allowed = {"Po"} if "'" in result and language in ("it", "en") else set()
        assert not {c for c in categories if c[0] in "PSC" and c != "Cn"} - allowed, ascii(text)


@pytest.mark.parametrize("language", ["hi", "pa", "te"])
def test_every_mark_of_the_script_is_kept(language: str) -> None:
    first, last = BLOCKS[language]
    for code in range(first, last + 1):
        mark = chr(code)
        if unicodedata.category(mark)[0] == "M":
            result = normalize(f"{chr(first + 0x15)}{mark} क", language)
            assert sum(unicodedata.category(c)[0] == "M" for c in result) == 1, hex(code)


def test_long_indic_words_stay_whole() -> None:
    for text, language in (("विश्वविद्यालय", "hi"), ("ਯੂਨੀਵਰਸਿਟੀ", "pa"), ("విశ్వవిద్యాలయం", "te")):
        assert len(normalize(text, language).split()) == 1
        assert normalize(text, language) == unicodedata.normalize("NFC", text)


def test_unknown_languages_are_named_with_the_legal_ones() -> None:
    with pytest.raises(LanguageError, match="'xx'.*en, hi, it, pa, te"):
        normalize("text", "xx")
    with pytest.raises(UserError, match="'de', 'hin'"):
        check_languages({"hi", "hin", "de"})


def test_needs_no_resource_of_the_indic_library() -> None:
    code = "from espnet_moe.data.normalize import normalize; print(normalize('है।', 'hi'))"
    environment = {"PYTHONIOENCODING": "utf-8", "HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "है"
