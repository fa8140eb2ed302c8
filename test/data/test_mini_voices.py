"""The voices of the mini corpus: whose they are, how they sound, and noise at a wanted level."""

import itertools

import numpy as np
import pytest

from espnet_moe.analysis.phones import Consonant, phone
from espnet_moe.analysis.spelling import pronounce
from espnet_moe.data.mini_voices import (
    LANGUAGES,
    SPLITS,
    Synthesizer,
    Voice,
    add_noise,
    rotation,
    variants,
    voices,
)
from espnet_moe.errors import UserError

TEXTS = {
    "en": "the boy is reading at home",
    "hi": "लड़का घर में पढ़ रहा है",
    "it": "il ragazzo legge a casa",
    "pa": "ਮੁੰਡਾ ਘਰ ਵਿੱਚ ਪੜ੍ਹ ਰਿਹਾ ਹੈ",
    "te": "అబ్బాయి ఇంట్లో చదువుతున్నాడు",
}


@pytest.fixture(scope="module")
def speak():
    return Synthesizer()


def test_no_variant_and_no_speaker_is_in_two_splits():
    for a, b in itertools.combinations(SPLITS, 2):
        assert not set(variants(a)) & set(variants(b))
        assert not {v.speaker for v in voices(a)} & {v.speaker for v in voices(b)}


@pytest.mark.parametrize("split,count", [("train", 50), ("dev", 12), ("test", 12), ("base", 50)])
def test_enough_speakers_of_both_genders(split, count):
    speakers = voices(split)
    assert len({voice.speaker for voice in speakers}) == len(speakers) >= count
    assert {voice.gender for voice in speakers} == {"m", "f"}
    assert {voice.variant for voice in speakers} <= set(variants(split))


def test_speakers_of_one_variant_differ_in_pitch():
    pitches = {}
    for voice in voices("train"):
        pitches.setdefault(voice.variant, []).append(voice.pitch)
    assert all(abs(a - b) > 5 for a, b in pitches.values())


def test_the_rotation_takes_everyone_in_turn():
    count = len(voices("dev"))
    turns = list(itertools.islice(rotation("dev"), 2 * count))
    assert turns[:count] == turns[count:] == list(voices("dev"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_is_spoken_at_a_human_pace(speak, language):
    speech = speak(TEXTS[language], language, voices("dev")[0])
    assert speech.dtype == np.float32 and np.abs(speech).max() <= 1
    assert 0.8 < len(speech) / speak.sample_rate < 4
    assert speech.std() > 0.01


def test_variants_pitches_and_speeds_sound_different(speak):
    first = Voice("1", variants("dev")[0], pitch=40, speed=150, gender="m")
    other = Voice("2", variants("dev")[1], pitch=40, speed=150, gender="m")
    slow = Voice("3", variants("dev")[0], pitch=40, speed=100, gender="m")
    high = Voice("4", variants("dev")[0], pitch=90, speed=150, gender="m")
    spectra = [
        np.abs(np.fft.rfft(speak(TEXTS["it"], "it", voice), 1 << 17))[: 1 << 14]
        for voice in (first, other, high)
    ]
    for a, b in itertools.combinations(spectra, 2):
        assert np.corrcoef(a, b)[0, 1] < 0.9
    fast, long = (len(speak(TEXTS["it"], "it", voice)) for voice in (first, slow))
    assert long > 1.2 * fast


def test_another_rate_keeps_the_duration(speak):
    voice = voices("dev")[2]
    short = speak.at(8000, TEXTS["hi"], "hi", voice)
    long = speak(TEXTS["hi"], "hi", voice)
    # Flutter makes two readings of one sentence a little different.
    assert len(short) / 8000 == pytest.approx(len(long) / speak.sample_rate, rel=0.05)


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("hi", "चाचा जाना छोटा झूठ टमाटर डर ढाल तारा थोड़ा दिन धन नदी भाई घर क ख"),
        ("pa", "ਚਾਚਾ ਜਾਣਾ ਛੋਟਾ ਟਮਾਟਰ ਡਰ ਤਾਰਾ ਥੋੜਾ ਦਿਨ"),
        ("te", "చాలా జనం ఛత్రం ఝరి టమాటా డబ్బు తల్లి థాలి దారి ధనం ఖర్చు ఘనం భూమి ఫలం అచ్చు"),
    ],
)
def test_stops_and_affricates_are_those_of_the_spelling(speak, language, words):
    for word in words.split():
        speak(word, language, voices("dev")[0])
        spoken = [event.symbol for event in speak.phones]
        assert _stops(spoken) == _stops(pronounce(word, language)), word


def test_stops_of_italian_and_english_are_as_told(speak):
    for language, word in (("it", "tardi"), ("en", "today")):
        speak(word, language, voices("dev")[0])
        assert _stops(event.symbol for event in speak.phones) == ["t", "d"]


def _stops(symbols):
    told = ((symbol, phone(symbol)) for symbol in symbols)
    return [s for s, p in told if isinstance(p, Consonant) and p.manner in ("plosive", "affricate")]


def test_wrong_languages_texts_and_splits(speak):
    with pytest.raises(UserError, match="no voice for 'xx': choose one of en, hi, it, pa, te"):
        speak("ciao", "xx", voices("dev")[0])
    with pytest.raises(UserError, match="no sound for ''"):
        speak("", "it", voices("dev")[0])
    with pytest.raises(UserError, match="split 'valid' is unknown: choose one of base, train"):
        voices("valid")


@pytest.mark.parametrize("snr", [0.0, 20.0])
def test_noise_has_the_wanted_level(snr):
    speech = np.sin(np.arange(16000) * 0.2).astype(np.float32)
    noise = add_noise(speech, snr, np.random.default_rng(3)) - speech
    measured = 10 * np.log10(np.mean(speech**2) / np.mean(noise**2))
    assert measured == pytest.approx(snr, abs=0.1)
