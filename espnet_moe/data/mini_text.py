"""Parallel sentences of the mini corpus in English, Hindi, Italian, Punjabi and Telugu.

A pattern holds one template per language with slots such as ``{place}``; the lexicon holds what
may fill them. The same pattern with the same fillers is the same sentence in every language. Both
tables are tab-separated files beside this module: ``mini_patterns.tsv`` and ``mini_lexicon.tsv``.
The texts are as scoring normalises them: lower case, Unicode NFC, numbers as words, no punctuation
but the Italian apostrophe.
"""

import csv
import hashlib
import itertools
import math
import random
import string
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from types import MappingProxyType

from espnet_moe.errors import UserError

LANGUAGES = ("en", "hi", "it", "pa", "te")
SPLITS = ("base", "train", "dev", "test")

# The share of all sentences in each split, in per cent; they add up to 100.
_SPLIT_SHARES = {"base": 70, "train": 20, "dev": 5, "test": 5}
# Patterns with four slots have up to 10,000 sentences; more of one pattern add no variety.
_MAX_SENTENCES_PER_PATTERN = 4000
# Number of sentences that a draw chooses the next one from, so that it uses all words about evenly.
_POOL = 16
# Slots that take a part of the category "number", which is stored in ascending order from zero.
_NUMBER_SLOTS = {"digit": slice(0, 10), "count": slice(2, None), "hour": slice(2, 13)}


@dataclass(frozen=True)
class Sentence:
    """One sentence in every language.

    Args:
        key: Pattern and fillers joined by "-", the same across languages: "p01-boy-singing-market".
        texts: Language code to text, for each of `LANGUAGES`.
    """

    key: str
    texts: Mapping[str, str]


@dataclass(frozen=True)
class _Entry:
    """A lexicon line: one concept and its words in every language."""

    concept: str
    texts: Mapping[str, str]


@dataclass(frozen=True)
class _Pattern:
    """A pattern: one template per language, and the slots that all of them fill."""

    name: str
    templates: Mapping[str, str]
    slots: tuple[str, ...]


def sentences(split: str, size: int, seed: int = 0) -> list[Sentence]:
    """Draw sentences of a split, evenly over the patterns.

    No sentence of one split occurs in another, in any language, whatever the sizes and seeds. A
    larger size begins with the sentences of a smaller one.

    Args:
        split: One of `SPLITS`.
        size: Number of sentences, at least 0 and at most the capacity of the split.
        seed: Seed of the draw.

    Returns:
        `size` different sentences; the order is a function of split and seed alone.

    Raises:
        UserError: The split is unknown, or the size negative or more than the split holds.
    """
    limit = capacity(split)
    if not 0 <= size <= limit:
        raise UserError(
            f"{size} sentences asked of the mini corpus split '{split}'; "
            f"it holds {limit}: ask for 0 to {limit}"
        )
    rng = random.Random(f"{split}-{seed}")
    queues = [_balanced(rng.sample(group, len(group))) for group in _sentences_by_pattern()[split]]
    drawn: list[Sentence] = []
    for turn in itertools.zip_longest(*queues):
        if len(drawn) >= size:
            break
        # Some patterns run out before others; the rest of the turn goes on in a random order.
        left = [sentence for sentence in turn if sentence is not None]
        rng.shuffle(left)
        drawn.extend(left)
    return drawn[:size]


def capacity(split: str) -> int:
    """Count the different sentences that a split can give.

    Args:
        split: One of `SPLITS`.

    Returns:
        The largest size that `sentences` accepts.

    Raises:
        UserError: The split is unknown.
    """
    if split not in SPLITS:
        raise UserError(f"unknown mini corpus split '{split}'; use one of {', '.join(SPLITS)}")
    return sum(len(group) for group in _sentences_by_pattern()[split])


def vocabulary(language: str) -> set[str]:
    """Collect the words of a language over all splits.

    Args:
        language: One of `LANGUAGES`.

    Returns:
        The white-space separated words of all sentences.

    Raises:
        UserError: The language is unknown.
    """
    if language not in LANGUAGES:
        raise UserError(
            f"the mini corpus has no language '{language}'; use one of {', '.join(LANGUAGES)}"
        )
    groups = itertools.chain.from_iterable(_sentences_by_pattern().values())
    return {word for group in groups for item in group for word in item.texts[language].split()}


def _balanced(group: Sequence[Sentence]) -> Iterator[Sentence]:
    """Order the sentences of a pattern so that its first few use all fillers about evenly.

    Greedy: of the next `_POOL` sentences, the one whose fillers were used least so far.
    """
    uses: Counter[str] = Counter()
    waiting = iter(group)
    pool = list(itertools.islice(waiting, _POOL))
    while pool:
        concepts = [_concepts(sentence) for sentence in pool]
        costs = [sum(uses[concept] for concept in item) for item in concepts]
        best = costs.index(min(costs))
        uses.update(concepts[best])
        yield pool.pop(best)
        pool.extend(itertools.islice(waiting, 1))


def _concepts(sentence: Sentence) -> list[str]:
    """List the fillers of a sentence, which follow the pattern in its key."""
    return sentence.key.split("-")[1:]


def _read_table(name: str) -> list[dict[str, str]]:
    """Read a tab-separated table that lies beside this module."""
    text = resources.files("espnet_moe.data").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))


def _read_lexicon() -> dict[str, list[_Entry]]:
    """Read the lexicon: what may fill a slot, by slot name."""
    fillers: dict[str, list[_Entry]] = {}
    for row in _read_table("mini_lexicon.tsv"):
        entry = _Entry(row["concept"], {language: row[language] for language in LANGUAGES})
        fillers.setdefault(row["category"], []).append(entry)
    fillers.update({slot: fillers["number"][part] for slot, part in _NUMBER_SLOTS.items()})
    return fillers


def _slots(template: str) -> list[str]:
    """List the slot names of a template in their order."""
    return [field for _, field, _, _ in string.Formatter().parse(template) if field]


def _read_patterns() -> list[_Pattern]:
    """Read the patterns; the English template gives the order of the slots in a key."""
    return [
        _Pattern(
            row["pattern"],
            {language: row[language] for language in LANGUAGES},
            tuple(_slots(row["en"])),
        )
        for row in _read_table("mini_patterns.tsv")
    ]


def _category(slot: str) -> str:
    """Name the category of a slot: "animal_2" is a second "animal"."""
    return slot.partition("_")[0]


def _decode_index(index: int, sizes: Sequence[int]) -> list[int]:
    """Write a number in the mixed radix of the slots' numbers of fillers."""
    digits = []
    for size in reversed(sizes):
        index, digit = divmod(index, size)
        digits.append(digit)
    return digits[::-1]


def _fill(pattern: _Pattern, fillers: Mapping[str, list[_Entry]]) -> Iterator[Sentence]:
    """Fill the slots of a pattern in all ways, or a fixed sample of them where they are many."""
    choices = [fillers[_category(slot)] for slot in pattern.slots]
    sizes = [len(choice) for choice in choices]
    total = math.prod(sizes)
    indices = random.Random(pattern.name).sample(
        range(total), min(total, _MAX_SENTENCES_PER_PATTERN)
    )
    for index in indices:
        picked = [
            choice[digit]
            for choice, digit in zip(choices, _decode_index(index, sizes), strict=True)
        ]
        if _repeats(pattern.slots, picked):
            continue
        texts = {
            # Telugu suffixes are written onto the word in the slot, which may then compose.
            language: unicodedata.normalize(
                "NFC",
                template.format_map(
                    {
                        slot: entry.texts[language]
                        for slot, entry in zip(pattern.slots, picked, strict=True)
                    }
                ),
            )
            for language, template in pattern.templates.items()
        }
        key = "-".join([pattern.name, *(entry.concept for entry in picked)])
        yield Sentence(key, MappingProxyType(texts))


def _repeats(slots: Sequence[str], picked: Sequence[_Entry]) -> bool:
    """Tell whether a sentence names a thing twice ("the dog and the dog"); digits may repeat."""
    named = [
        (_category(slot), entry.concept)
        for slot, entry in zip(slots, picked, strict=True)
        if _category(slot) != "digit"
    ]
    return len(set(named)) < len(named)


def _split_of(key: str) -> str:
    """Assign a key to a split by a hash that is the same on every machine."""
    point = int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big") % 100
    for split, share in _SPLIT_SHARES.items():
        if point < share:
            return split
        point -= share
    raise AssertionError("the shares of the splits do not add up to 100")


@lru_cache(maxsize=1)
def _sentences_by_pattern() -> dict[str, list[list[Sentence]]]:
    """Enumerate all sentences: split to one list per pattern.

    Two keys can have the same text in one language ("Raju" and "the king" in Telugu). Only the
    first is kept, so that no text is in two splits.
    """
    fillers = _read_lexicon()
    seen: set[tuple[str, str]] = set()
    result: dict[str, list[list[Sentence]]] = {split: [] for split in SPLITS}
    for pattern in _read_patterns():
        groups: dict[str, list[Sentence]] = {split: [] for split in SPLITS}
        for sentence in _fill(pattern, fillers):
            if seen.isdisjoint(sentence.texts.items()):
                seen.update(sentence.texts.items())
                groups[_split_of(sentence.key)].append(sentence)
        for split, group in groups.items():
            result[split].append(group)
    return result
