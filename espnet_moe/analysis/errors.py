"""What goes wrong when words go wrong: every error of every system, by its kind."""

import csv
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from espnet_moe.analysis.decodings import DecodedSets, Decoding, sets_with_alternatives
from espnet_moe.analysis.phones import sequence_distance
from espnet_moe.analysis.record import About, Analysis
from espnet_moe.analysis.spelling import pronounce, script_of
from espnet_moe.data.datadir import load_datadir
from espnet_moe.data.normalize import LANGUAGES, normalize
from espnet_moe.errors import UserError
from espnet_moe.scoring.error_rates import bootstrap_interval

# Of a substitution the first that fits, in this order.
SUBSTITUTIONS = (
    *("code_switched", "wrong_script", "number", "homophone", "out_of_vocabulary", "phonetic"),
    "other",
)
CATEGORIES = (*SUBSTITUTIONS, "deletion", "loop", "insertion")
# Distance up to which a word is a phonetic confusion: of random pairs of words of the mini corpus
# 1 to 2 % are as near, in each of its languages.
NEAR = 0.3
LOOP_WORDS, LOOP_TIMES = 4, 3  # a loop: up to so many words, so many times in a row or more
CONFUSIONS, EXAMPLES = 20, 3
WORD_KINDS = ("code_switched", "number", "out_of_vocabulary")

SOURCES = (
    "International Phonetic Association, Handbook of the IPA, Cambridge University Press 1999 "
    "(features of phones)",
    "Bureau of Indian Standards, IS 13194:1991 (ISCII: the common layout of the Indic scripts)",
    "Bisani and Ney, Bootstrap estimates for confidence intervals in ASR performance evaluation, "
    "ICASSP 2004",
)


@dataclass(frozen=True)
class Error:
    """An error and its kind.

    Attributes:
        category: One of :data:`CATEGORIES`.
        reference: The word that was said; empty for an insertion.
        hypothesis: The word that was heard; empty for a deletion.
    """

    category: str
    reference: str
    hypothesis: str


@dataclass
class Tally:
    """Errors of some utterances of one language.

    Attributes:
        counts: By category an entry an utterance.
        words: By kind of reference word how many there are, and how many are wrong.
        confusions: Pairs of words and how often.
        examples: By category a few utterances.
    """

    counts: dict[str, list[int]] = field(default_factory=lambda: {c: [] for c in CATEGORIES})
    words: dict[str, list[int]] = field(default_factory=lambda: {k: [0, 0] for k in WORD_KINDS})
    confusions: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)


def kinds_of(word: str, main_script: str, language: str, known: Collection[str] | None) -> set[str]:
    """What is special about a word of a reference: some of :data:`WORD_KINDS`.

    Args:
        word: Normalised.
        main_script: Of the reference.
        language: Of the utterance.
        known: Words of the training text; ``None`` where it is not known.
    """
    found, script = set(), script_of(word)
    if script and script != main_script:
        found.add("code_switched")
    if _is_number(word, language):
        found.add("number")
    if known is not None and word not in known:
        found.add("out_of_vocabulary")
    return found


def categorise(
    reference: str, hypothesis: str, main_script: str, language: str, known: Collection[str] | None
) -> str:
    """Say what kind of substitution two different words are; see :data:`SUBSTITUTIONS`."""
    kinds = kinds_of(reference, main_script, language, known)
    if "code_switched" in kinds:
        return "code_switched"
    scripts = script_of(reference), script_of(hypothesis)
    if all(scripts) and scripts[0] != scripts[1]:
        return "wrong_script"
    if "number" in kinds:
        return "number"
    sounds = pronounce(reference, language), pronounce(hypothesis, language)
    if sounds[0] is not None and sounds[0] == sounds[1]:
        return "homophone"
    if "out_of_vocabulary" in kinds:
        return "out_of_vocabulary"
    return "phonetic" if word_distance(reference, hypothesis, language) <= NEAR else "other"


@cache
def word_distance(first: str, second: str, language: str) -> float:
    """How far apart two words sound, 0 to 1: by phones where both have any, else by characters."""
    a, b = pronounce(first, language), pronounce(second, language)
    if a is None or b is None:
        return sequence_distance(tuple(first), tuple(second), of_phones=False)
    return sequence_distance(a, b, of_phones=True)


def find_loops(words: Sequence[str]) -> list[bool]:
    """Mark the words of a hypothesis that repeat what stands right before them, again and again.

    A loop is a run of up to :data:`LOOP_WORDS` words that stands :data:`LOOP_TIMES` times or more
    in a row; its first time is not marked.
    """
    marked = [False] * len(words)
    for size in range(1, LOOP_WORDS + 1):
        start = 0
        while start + size * LOOP_TIMES <= len(words):
            times = 1
            while words[start + times * size :][:size] == words[start:][:size]:
                times += 1
            if times >= LOOP_TIMES:
                for i in range(start + size, start + times * size):
                    marked[i] = True
                start += (times - 1) * size
            start += 1
    return marked


def errors_of(
    decoding: Decoding, row: int, language: str, known: Collection[str] | None
) -> list[Error]:
    """The errors of one utterance, in their order."""
    alignment = decoding.alignments[row]
    looping = iter(find_loops([word for word in alignment.hypothesis if word is not None]))
    main = main_script(decoding.references.texts[row])
    found = []
    for reference, hypothesis in zip(alignment.reference, alignment.hypothesis, strict=True):
        in_loop = next(looping) if hypothesis is not None else False
        if reference == hypothesis:
            continue
        if hypothesis is None:
            category = "deletion"
        elif reference is None:
            category = "loop" if in_loop else "insertion"
        else:
            category = categorise(reference, hypothesis, main, language, known)
        found.append(Error(category, reference or "", hypothesis or ""))
    return found


def main_script(text: str) -> str:
    """The script of most words of a text; the first of equals."""
    scripts = Counter(script for word in text.split() if (script := script_of(word)))
    return scripts.most_common(1)[0][0] if scripts else ""


@cache
def number_words(language: str) -> frozenset[str]:
    """Words of the cardinal numbers to a hundred, from the lexicon of the mini corpus.

    Without "one", which is an article, too, in several languages.
    """
    if language not in LANGUAGES:
        return frozenset()
    text = resources.files("espnet_moe.data").joinpath("mini_lexicon.tsv").read_text("utf-8")
    rows = list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    numbers = {row["concept"]: row[language] for row in rows if row["category"] == "number"}
    words = {word for text in numbers.values() for word in normalize(text, language).split()}
    return frozenset(words - {normalize(numbers["one"], language)})


def _is_number(word: str, language: str) -> bool:
    digits = any(unicodedata.category(character) == "Nd" for character in word)
    return digits or word in number_words(language)


def read_vocabularies(pairs: Sequence[str]) -> dict[str, frozenset[str]]:
    """Read the words of training texts.

    Args:
        pairs: ``LANGUAGE=FOLDER`` each, a data directory.

    Raises:
        UserError: For malformed pairs or folders that cannot be read.
    """
    found: dict[str, set[str]] = {}
    for pair in pairs:
        language, equals, folder = pair.partition("=")
        if not (language and equals and folder):
            raise UserError(f"--train '{pair}' is not LANGUAGE=FOLDER, e.g. hi=dump/raw/train_hi")
        texts = [utt.text for utt in load_datadir(Path(folder)).utterances]
        words = {word for text in texts for word in normalize(text, language).split()}
        found[language] = found.get(language, set()) | words
    return {language: frozenset(words) for language, words in found.items()}


ABOUT = About(
    name="errors",
    title="Kinds of errors",
    what="Which words go wrong, and how: by sound, spelling, vocabulary, script, in loops?",
    method=(
        "Words are aligned by minimal edits. A substitution is of the first kind that fits: "
        "code_switched (the reference's word is in another script than most of its sentence), "
        "wrong_script (the hypothesis is in another script), number (digits, or a cardinal to "
        "a hundred other than one), homophone (another spelling of the same sound), "
        "out_of_vocabulary (not in the training text), phonetic (at most "
        f"{NEAR} edits a phone, where a phone for another costs the share of features that "
        "differ; by characters where spelling does not say the sound), other. Insertions in a "
        f"run of up to {LOOP_WORDS} words that stands {LOOP_TIMES} times or more in a row are "
        "loops. words_by tells how many reference words of a kind there are and how many are "
        "wrong. Intervals: 95 %, bootstrap over utterances."
    ),
    sources=SOURCES,
    units={
        "rate": "per 100 words of the reference",
        "share": "of all errors, percent",
        "wer": "percent",
    },
)


def errors(
    which: DecodedSets,
    vocabularies: Mapping[str, Collection[str]],
    resamples: int = 1000,
    seed: int = 0,
) -> Analysis:
    """Sort the errors of every system on every set by their kind.

    Args:
        which: Decodings.
        vocabularies: Words of the training text by language.
        resamples: Bootstrap draws.
        seed: Of the draws.
    """
    decodings, missing = which.read()
    if lacking := sets_with_alternatives(decodings):
        missing["alternatives"] = f"{', '.join(lacking)}: only the first right text is looked at"
    rows = []
    for decoding in decodings:
        languages = [own[0] for own in decoding.references.languages]
        for language in sorted(set(languages)):
            chosen = [i for i, own in enumerate(languages) if own == language]
            known = vocabularies.get(language)
            if known is None:
                missing[f"out_of_vocabulary of {language}"] = (
                    f"no training text was given (--train {language}=FOLDER)"
                )
            texts = [decoding.references.texts[i] for i in chosen]
            if not any(pronounce(word, language) for text in texts for word in text.split()):
                missing[f"homophone of {language}"] = (
                    "its spelling does not say how words sound: phonetic confusions are by "
                    "characters"
                )
            rows.append(_row(decoding, language, chosen, known, resamples, seed))
    return Analysis(
        ABOUT,
        results={"categories": CATEGORIES, "rows": rows},
        options={
            "resamples": resamples,
            "seed": seed,
            "inference_tag": which.inference_tag,
            "near": NEAR,
            "vocabulary": {code: len(words) for code, words in vocabularies.items()},
        },
        not_available=missing,
    )


def _row(
    decoding: Decoding,
    language: str,
    chosen: Sequence[int],
    known: Collection[str] | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The errors of one system on one language of a set."""
    tally = Tally()
    for row in chosen:
        _count(tally, decoding, row, language, known)
    counts = decoding.counts.select(np.array(chosen))
    total = int(counts.errors.sum())
    categories = {}
    for category, each in tally.counts.items():
        own = np.array(each)
        low, high = bootstrap_interval(own, counts.lengths, resamples, seed)
        categories[category] = {
            "count": int(own.sum()),
            "rate": 100 * own.sum() / counts.lengths.sum(),
            "interval": (low, high),
            "share": 100 * own.sum() / total if total else None,
        }
    if known is None:
        categories["out_of_vocabulary"] = {"count": None, "rate": None, "interval": None}
    return {
        "system": decoding.system,
        "set": decoding.set,
        "language": language,
        "utterances": len(chosen),
        "words": int(counts.lengths.sum()),
        "errors": total,
        "wer": counts.rate,
        "categories": categories,
        "words_by": {
            kind: {"words": words, "wrong": wrong}
            for kind, (words, wrong) in tally.words.items()
            if kind != "out_of_vocabulary" or known is not None
        },
        "confusions": [
            {"reference": a, "hypothesis": b, "count": count}
            for (a, b), count in tally.confusions.most_common(CONFUSIONS)
        ],
        "examples": tally.examples,
    }


def _count(
    tally: Tally, decoding: Decoding, row: int, language: str, known: Collection[str] | None
) -> None:
    found = errors_of(decoding, row, language, known)
    by_category = Counter(error.category for error in found)
    for category in CATEGORIES:
        tally.counts[category].append(by_category[category])
    text = decoding.references.texts[row]
    main = main_script(text)
    wrong = Counter(error.reference for error in found)
    for word in text.split():
        for kind in kinds_of(word, main, language, known):
            tally.words[kind][0] += 1
            if wrong[word] > 0:
                tally.words[kind][1] += 1
        wrong[word] -= 1
    for error in found:
        if error.reference and error.hypothesis:
            tally.confusions[error.reference, error.hypothesis] += 1
        examples = tally.examples.setdefault(error.category, [])
        if len(examples) < EXAMPLES:
            examples.append(
                {
                    "utt_id": decoding.references.utterances[row].utt_id,
                    "word": error.reference,
                    "heard": error.hypothesis,
                    "reference": text,
                    "hypothesis": decoding.hypotheses[row],
                }
            )
