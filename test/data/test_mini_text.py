"""The grammar of the mini corpus: enough words, pure scripts, splits that share nothing."""

import csv
import unicodedata
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from string import Formatter

import pytest

from espnet_moe.data import mini_text
from espnet_moe.data.mini_text import LANGUAGES, SPLITS, capacity, sentences, vocabulary
from espnet_moe.errors import UserError

FOLDER = Path(mini_text.__file__).parent
SCRIPTS = {"en": "LATIN", "hi": "DEVANAGARI", "it": "LATIN", "pa": "GURMUKHI", "te": "TELUGU"}
MIN_CAPACITY = {"base": 12000, "train": 3000, "dev": 600, "test": 600}


def read_table(name):
    with open(FOLDER / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@lru_cache
def everything(split):
    return sentences(split, capacity(split))


def all_texts(split, language):
    return [sentence.texts[language] for sentence in everything(split)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_has_more_than_250_words_and_30_patterns(language):
    assert len(vocabulary(language)) > 250
    assert len({row[language] for row in read_table("mini_patterns.tsv")}) >= 36


@pytest.mark.parametrize("language", LANGUAGES)
def test_words_are_of_one_script_and_already_normalised(language):
    for word in vocabulary(language):
        assert word == unicodedata.normalize("NFC", word).lower()
        for character in word:
            if language == "it" and character == "'":
                continue
            assert unicodedata.category(character)[0] in "LM", (word, character)
            assert unicodedata.name(character).startswith(SCRIPTS[language]), (word, character)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_combining_mark_never_begins_a_word_or_follows_another_vowel_sign(language):
    for word in vocabulary(language):
        assert not unicodedata.category(word[0]).startswith("M"), word
        signs = ["VOWEL SIGN" in unicodedata.name(character) for character in word]
        assert not any(a and b for a, b in pairwise(signs)), word


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_is_heard_in_the_first_2000_training_sentences(language):
    counts = Counter(
        word for item in sentences("train", 2000) for word in item.texts[language].split()
    )
    assert min(counts[word] for word in vocabulary(language)) >= 5


@pytest.mark.parametrize("language", LANGUAGES)
def test_splits_share_no_text_and_repeat_none(language):
    texts = [text for split in SPLITS for text in all_texts(split, language)]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_are_short_and_filled(language):
    for text in all_texts("train", language):
        assert 3 <= len(text.split()) <= 11
        assert text == " ".join(text.split())
        assert "{" not in text and "}" not in text


def test_templates_of_a_pattern_have_the_same_slots_in_every_language():
    for row in read_table("mini_patterns.tsv"):
        slots = {
            language: sorted(field for _, field, _, _ in Formatter().parse(row[language]) if field)
            for language in LANGUAGES
        }
        assert all(slots[language] == slots["en"] for language in LANGUAGES), row


def test_concepts_of_a_category_differ_in_every_language():
    rows = read_table("mini_lexicon.tsv")
    for column in ("concept", *LANGUAGES):
        entries = [(row["category"], row[column]) for row in rows]
        assert len(entries) == len(set(entries)), column


def test_a_sentence_is_a_translation_of_itself():
    found = {item.key: item for split in SPLITS for item in everything(split)}
    item = found["p01-boy-singing-market"]
    assert dict(item.texts) == {
        "en": "the boy is singing in the market",
        "hi": "लड़का बाज़ार में गा रहा है",
        "it": "il ragazzo canta al mercato",
        "pa": "ਮੁੰਡਾ ਬਾਜ਼ਾਰ ਵਿੱਚ ਗਾ ਰਿਹਾ ਹੈ",
        "te": "అబ్బాయి బజారులో పాడుతున్నాడు",
    }


@pytest.mark.parametrize("split", SPLITS)
def test_a_draw_is_repeatable_even_and_extends_a_smaller_one(split):
    small, large = sentences(split, 120, seed=3), sentences(split, 500, seed=3)
    assert large[:120] == small
    assert sentences(split, 120, seed=3) == small
    assert sentences(split, 120, seed=4) != small
    patterns = Counter(item.key.split("-")[0] for item in large)
    assert len(patterns) == len(read_table("mini_patterns.tsv"))
    assert max(patterns.values()) <= 2 * 500 // len(patterns)


@pytest.mark.parametrize("split", SPLITS)
def test_asking_for_more_than_the_capacity_names_it(split):
    assert capacity(split) >= MIN_CAPACITY[split]
    assert len(everything(split)) == capacity(split)
    with pytest.raises(UserError, match=str(capacity(split))):
        sentences(split, capacity(split) + 1)
    with pytest.raises(UserError, match="0 to"):
        sentences(split, -1)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(UserError, match="base, train, dev, test"):
        sentences("validation", 1)
    with pytest.raises(UserError, match="en, hi, it, pa, te"):
        vocabulary("de")
