"""Phones, their distances, and what spelling says in each script."""

import pytest

from espnet_moe.analysis.phones import features, phone, phone_distance, sequence_distance
from espnet_moe.analysis.spelling import pronounce, script_of


def test_features_of_the_chart():
    assert features("t̪ʰ") == {
        "kind": "consonant",
        "place": "dental",
        "manner": "plosive",
        "voiced": "false",
        "aspirated": "true",
    }
    assert features("uː") == {
        "kind": "vowel",
        "height": "close",
        "backness": "back",
        "rounded": "true",
        "long": "true",
        "nasal": "false",
    }
    assert phone("g") == phone("ɡ") and phone("t͡ʃ") == phone("tʃ")
    assert phone("ˈiː") == phone("iː") and phone("ç").place == phone("ɟ").place == "palatal"
    assert phone("aɪ") is None, "a diphthong has no one place in the chart"
    assert phone("ã").nasal and phone("?") is None and features("?") == {}


def test_distances():
    assert phone_distance("p", "b") == 0.25  # voice alone
    assert phone_distance("i", "iː") == 0.2  # length alone
    assert phone_distance("p", "a") == phone_distance("p", "?") == 1
    assert sequence_distance(["p", "a"], ["b", "a"], of_phones=True) == pytest.approx(0.125)
    assert sequence_distance("kitten", "sitting", of_phones=False) == pytest.approx(3 / 7)
    assert sequence_distance([], [], of_phones=True) == 0


@pytest.mark.parametrize(
    ("word", "language", "phones"),
    [
        ("कमल", "hi", "k ə m ə l"),  # the last vowel is silent
        ("न", "hi", "n ə"),  # but not where it is the only one
        ("गीता", "hi", "ɡ iː t̪ ɑː"),
        ("ज़मीन", "hi", "z ə m iː n"),  # nukta
        ("ऋषि", "hi", "ɾ ɪ ʃ ɪ"),
        ("दुःख", "hi", "d̪ ʊ ɦ kʰ"),
        ("ਇੱਕ", "pa", "ɪ k k"),  # addak doubles what follows
        ("ਪੰਜ", "pa", "p ə n dʒ"),  # tippi
        ("ਸ਼ਹਿਰ", "pa", "ʃ ə ɦ ɪ ɾ"),
        ("నాలుగు", "te", "n ɑː l ʊ ɡ ʊ"),
        ("కృష్ణ", "te", "k ɾ ʊ ʂ ɳ a"),
        ("perché", "it", "p e r k e"),
        ("famiglia", "it", "f a m i ʎ a"),
        ("ghiaccio", "it", "ɡ i a tʃ tʃ o"),
        ("gnocchi", "it", "ɲ o k k i"),
        ("sciare", "it", "ʃ a r e"),
        ("giugno", "it", "dʒ u ɲ o"),
        ("quattro", "it", "k w a t t r o"),
        ("schiena", "it", "s k i e n a"),
        ("l'acqua", "it", "l a k k w a"),
    ],
)
def test_spelling(word, language, phones):
    assert pronounce(word, language) == tuple(phones.split())


def test_spelling_that_says_nothing():
    assert pronounce("through", "en") is None and pronounce("12", "hi") is None
    assert pronounce("घरabc", "hi") is None and pronounce("дом", "it") is None
    assert [script_of(w) for w in ("घर", "ਘਰ", "ఇల్లు", "casa", "12", "l'é")] == [
        *("DEVANAGARI", "GURMUKHI", "TELUGU", "LATIN", "", "LATIN")
    ]
