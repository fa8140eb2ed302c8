"""Splits made of whole speakers: disjoint, of the wanted size, and the same as the corpus grows."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from espnet_moe.data.corpora.layout import CorpusError
from espnet_moe.data.corpora.splits import hold_out, in_splits, leave_out
from espnet_moe.data.utterance import Utterance


def corpus(counts: dict[str, int], split: str = "train") -> list[Utterance]:
    return [
        Utterance(f"{name}-{n:04d}", f"{name}/{n}.wav", "x", name, "hi", split)
        for name, count in counts.items()
        for n in range(count)
    ]


def speakers(utterances: list[Utterance]) -> dict[str, set[str]]:
    return {
        split: {utt.speaker for utt in utterances if utt.split == split}
        for split in ("train", "dev", "test")
    }


def sizes(seed: int, count: int = 200, most: int = 60) -> dict[str, int]:
    draw = random.Random(seed)
    return {f"s{n}": draw.randint(1, most) for n in range(count)}


@pytest.mark.parametrize("seed", range(5))
def test_speakers_are_in_one_split_and_a_twentieth_is_held_out(seed: int) -> None:
    counts = sizes(seed)
    before = corpus(counts)
    after = hold_out(before, ["dev", "test"], "X")
    of = speakers(after)
    assert set().union(*of.values()) == set(counts)
    assert sum(map(len, of.values())) == len(counts)
    assert [replace(utt, split="train") for utt in after] == before
    for split in ("dev", "test"):
        held = sum(counts[name] for name in of[split])
        assert 0.05 * len(before) <= held <= 0.05 * len(before) + 60


def test_order_of_utterances_does_not_matter_and_a_seed_does() -> None:
    before = corpus(sizes(0))
    first = speakers(hold_out(before, ["dev", "test"], "X"))
    random.Random(0).shuffle(before)
    assert speakers(hold_out(before, ["dev", "test"], "X")) == first
    assert speakers(hold_out(before, ["dev", "test"], "X", seed=1)) != first
    # dev is the same whether test is made too or not, and the other way round.
    assert speakers(hold_out(before, ["dev"], "X"))["dev"] == first["dev"]
    assert speakers(hold_out(before, ["test"], "X"))["test"] == first["test"]


@pytest.mark.parametrize("seed", range(5))
def test_who_is_held_out_stays_so_when_others_get_more_utterances(seed: int) -> None:
    counts = sizes(seed)
    old = speakers(hold_out(corpus(counts), ["dev", "test"], "X"))
    draw = random.Random(100 + seed)
    grown = dict(counts)
    for _ in range(500):
        grown[draw.choice(sorted(old["train"]))] += 1
    new = speakers(hold_out(corpus(grown), ["dev", "test"], "X"))
    assert old["dev"] <= new["dev"] and old["test"] <= new["test"]
    # A few more speakers, as a twentieth is more now; an utterance or two change nothing at all.
    assert len(new["dev"] - old["dev"]) <= 5
    little = counts | {name: counts[name] + 1 for name in sorted(old["train"])[:2]}
    assert speakers(hold_out(corpus(little), ["dev", "test"], "X")) == old


def test_no_more_than_two_thousand() -> None:
    counts = {f"s{n}": 300 for n in range(400)}
    after = Counter(utt.split for utt in hold_out(corpus(counts), ["dev", "test"], "X"))
    assert after["dev"] == after["test"] == 2100


def test_few_speakers() -> None:
    for counts in ({"a": 9, "b": 1, "c": 400}, {"a": 1, "b": 1, "c": 1}, {"a": 99, "b": 1, "c": 1}):
        of = speakers(hold_out(corpus(counts), ["dev", "test"], "X"))
        assert all(len(names) == 1 for names in of.values())
    with pytest.raises(
        CorpusError, match="train of X has 2 speakers: too few to make dev and test"
    ):
        hold_out(corpus({"a": 9, "b": 1}), ["dev", "test"], "X")
    with pytest.raises(CorpusError, match="has 0 speakers: too few to make test .* at least 2"):
        hold_out(corpus({"a": 9}, "dev"), ["test"], "X")
    with pytest.raises(CorpusError, match="X has dev: there is none to make"):
        hold_out(corpus({"a": 9, "b": 1}, "dev"), ["dev"], "X")


def test_speakers_of_one_split_leave_another(caplog: pytest.LogCaptureFixture) -> None:
    utterances = corpus({"a": 3, "b": 2, "c": 1}) + corpus({"d": 4}, "test")
    utterances += [replace(utt, utt_id=f"{utt.utt_id}x", split="test") for utt in corpus({"b": 2})]
    with caplog.at_level("INFO"):
        kept = leave_out(utterances, "train", "test", "X")
    assert speakers(kept) == {"train": {"a", "c"}, "dev": set(), "test": {"b", "d"}}
    assert "X: 2 of 6 utterances of train are left out: their speakers are in test" in caplog.text
    assert [utt.split for utt in in_splits(kept, ["test", "train"])] == ["test"] * 6 + ["train"] * 4
    assert leave_out(kept, "dev", "test", "X") == kept
    with pytest.raises(
        CorpusError, match="all speakers of train of X are in test: nothing is left"
    ):
        leave_out(corpus({"a": 1}) + corpus({"a": 1}, "test"), "train", "test", "X")
