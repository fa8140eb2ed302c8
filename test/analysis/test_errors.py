"""Kinds of errors on pairs made by hand, in every script."""

from pathlib import Path

import pytest

from espnet_moe.analysis.decodings import DecodedSets
from espnet_moe.analysis.errors import (
    CATEGORIES,
    categorise,
    errors,
    find_loops,
    number_words,
    read_vocabularies,
)
from espnet_moe.data.normalize import normalize
from espnet_moe.errors import UserError


@pytest.mark.parametrize(
    ("language", "reference", "hypothesis", "kind"),
    [
        ("hi", "रिशि", "ऋषि", "homophone"),
        ("hi", "गाना", "खाना", "phonetic"),
        ("hi", "मगरमच्छ", "घर", "other"),
        ("hi", "सात", "साथ", "number"),
        ("hi", "5", "पाँच", "number"),
        ("hi", "घर", "ਘਰ", "wrong_script"),
        ("pa", "ਰੰਗ", "ਰਂਗ", "homophone"),
        ("pa", "ਕੁੜੀ", "ਘੁੜੀ", "phonetic"),
        ("pa", "ਕਿਤਾਬ", "ਹਨ", "other"),
        ("pa", "ਛੇ", "ਸ਼ੇ", "number"),
        ("pa", "ਮੂਲੀਆਂ", "मूली", "wrong_script"),
        ("te", "రుషి", "ఋషి", "homophone"),
        ("te", "గాలి", "కాలి", "phonetic"),
        ("te", "పుస్తకం", "ఇల్లు", "other"),
        ("te", "నాలుగు", "నాలుక", "number"),
        ("te", "ఇల్లు", "illu", "wrong_script"),
        ("it", "anno", "hanno", "homophone"),
        ("it", "pala", "palla", "phonetic"),
        ("it", "casa", "libro", "other"),
        ("it", "tre", "te", "number"),
        ("it", "uno", "una", "phonetic"),  # an article, no number
        ("it", "casa", "घर", "wrong_script"),
        ("en", "light", "lights", "phonetic"),  # by characters
        ("en", "knight", "night", "phonetic"),  # English spelling does not tell
        ("hi", "phone", "फोन", "code_switched"),
    ],
)
def test_substitutions(language, reference, hypothesis, kind):
    main = {"hi": "DEVANAGARI", "pa": "GURMUKHI", "te": "TELUGU"}.get(language, "LATIN")
    pair = [normalize(word, language) for word in (reference, hypothesis)]
    assert pair == [reference, hypothesis], "as scoring has them"
    assert categorise(*pair, main, language, {reference}) == kind
    assert categorise(*pair, main, language, None) == kind
    if kind in ("phonetic", "other"):
        assert categorise(*pair, main, language, set()) == "out_of_vocabulary"


@pytest.mark.parametrize(
    ("words", "marked"),
    [
        ("a b c", "000"),
        ("a a b", "000"),  # twice is no loop
        ("a a a b", "0110"),
        ("x a b a b a b y", "00011110"),
        ("a a a a b b b", "0111011"),
        ("a b c d e a b c d e a b c d e", "0" * 15),  # longer than a loop's words
    ],
)
def test_loops(words, marked):
    assert "".join(str(int(m)) for m in find_loops(words.split())) == marked


def test_number_words():
    assert {"सात", "सौ"} <= number_words("hi") and "एक" not in number_words("hi")
    assert {"tre", "cento"} <= number_words("it") and "uno" not in number_words("it")
    assert number_words("xx") == frozenset()


@pytest.fixture
def experiment(tmp_path: Path, make_datadir) -> Path:
    data = make_datadir(tmp_path / "raw" / "test_it", {"it": 4})
    references = ["la pala è qui", "nel anno tre", "il cane dorme", "ciao"]
    hypotheses = ["la palla è qui", "nel hanno te", "dorme", "ciao ciao ciao ciao bella"]
    ids = [line.split()[0] for line in (data / "text").read_text().splitlines()]
    (data / "text").write_text("".join(f"{i} {t}\n" for i, t in zip(ids, references)))
    folder = tmp_path / "exp" / "hard" / "greedy" / "test_it"
    folder.mkdir(parents=True)
    (folder / "text").write_text("".join(f"{i} {t}\n" for i, t in zip(ids, hypotheses)))
    train = make_datadir(tmp_path / "raw" / "train_it", {"it": 4}, seed=1)
    lines = [
        f"{line.split()[0]} {t}\n"
        for line, t in zip((train / "text").read_text().splitlines(), references)
    ]
    lines[2] = lines[2].replace("il cane ", "")
    (train / "text").write_text("".join(lines))
    return tmp_path


def test_counted_by_hand(experiment):
    which = DecodedSets(experiment / "exp", experiment / "raw", "greedy", ("hard",), ("test_it",))
    known = read_vocabularies([f"it={experiment / 'raw' / 'train_it'}"])
    content = errors(which, known).content()
    (row,) = content["results"]["rows"]
    counts = {name: cell["count"] for name, cell in row["categories"].items()}
    wanted = dict.fromkeys(CATEGORIES, 0)
    wanted |= {"phonetic": 1, "homophone": 1, "number": 1, "deletion": 2, "loop": 3, "insertion": 1}
    assert counts == wanted and row["errors"] == sum(wanted.values()) == 9
    assert (row["words"], row["wer"]) == (11, pytest.approx(900 / 11, rel=1e-5))
    # il and cane were not in the training text, and both are lost.
    assert row["words_by"]["out_of_vocabulary"] == {"words": 2, "wrong": 2}
    assert row["words_by"]["number"] == {"words": 1, "wrong": 1}
    assert {"reference": "pala", "hypothesis": "palla", "count": 1} in row["confusions"]
    assert row["examples"]["homophone"][0]["hypothesis"] == "nel hanno te"
    low, high = row["categories"]["loop"]["interval"]
    assert low <= row["categories"]["loop"]["rate"] <= high
    assert content["not_available"] == {}


def test_what_is_not_known_is_said(experiment):
    which = DecodedSets(experiment / "exp", experiment / "raw", "greedy", ("hard",), ("test_it",))
    found = errors(which, {})
    (row,) = found.results["rows"]
    assert row["categories"]["out_of_vocabulary"]["count"] is None
    assert "no training text" in found.not_available["out_of_vocabulary of it"]
    with pytest.raises(UserError, match="not LANGUAGE=FOLDER"):
        read_vocabularies(["it"])
    with pytest.raises(UserError, match="does not exist"):
        read_vocabularies(["it=nowhere"])
