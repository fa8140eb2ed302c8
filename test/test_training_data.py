"""What a training reads of its data: labels, and batches with equally frequent classes."""

from collections import Counter

import numpy as np
import pytest
import torch

from espnet_moe.config import ConfigError
from espnet_moe.preprocessing import BalancedSampler, Preprocessor
from espnet_moe.training_data import Labels, balanced_batches, read_labels

COUNTS = {"hi": 40, "it": 13, "pa": 3}
CLASSES = {f"{code}{i}": code for code, count in COUNTS.items() for i in range(count)}
DRAW = np.random.default_rng(0)
LENGTHS = {utt: int(n) for utt, n in zip(CLASSES, DRAW.integers(5_000, 90_000, len(CLASSES)))}


def test_balanced_batches():
    batches = balanced_batches(LENGTHS, CLASSES, 12, seed=1)
    assert len(batches) == 10 and {len(b) for b in batches} == {12}
    for batch in batches:
        assert Counter(CLASSES[u] for u in batch) == {"hi": 4, "it": 4, "pa": 4}
    times = Counter(u for batch in batches for u in batch)
    assert times.keys() == CLASSES.keys()
    assert {times[u] for u, c in CLASSES.items() if c == "hi"} == {1}
    assert {times[u] for u, c in CLASSES.items() if c == "it"} == {3, 4}
    assert {times[u] for u, c in CLASSES.items() if c == "pa"} == {13, 14}
    # Alike in length: what a batch pads is little against random batches.
    spread = np.mean([np.std([LENGTHS[u] for u in b if CLASSES[u] == "hi"]) for b in batches])
    assert spread < 0.3 * np.std([LENGTHS[u] for u, c in CLASSES.items() if c == "hi"])


def test_balanced_batches_are_drawn_anew_but_repeat_themselves():
    assert balanced_batches(LENGTHS, CLASSES, 12, 1) == balanced_batches(LENGTHS, CLASSES, 12, 1)
    assert balanced_batches(LENGTHS, CLASSES, 12, 1) != balanced_batches(LENGTHS, CLASSES, 12, 2)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 1000])
def test_any_batch_size(batch_size):
    batches = balanced_batches(LENGTHS, CLASSES, batch_size, 3)
    assert sum(map(len, batches)) == 120 and all(batches)


def test_processes_share_the_rows_of_a_batch():
    whole = BalancedSampler(LENGTHS, CLASSES, 12)
    parts = [BalancedSampler(LENGTHS, CLASSES, 12, rank=r, world_size=2) for r in (0, 1)]
    assert len(whole) == len(parts[0]) == 10
    for batch, one, two in zip(whole.generate(5), *(p.generate(5) for p in parts), strict=True):
        assert sorted(batch) == sorted(one + two) and len(one) == len(two)
    with pytest.raises(ConfigError, match="batch_size 1 is too small for 2 processes"):
        BalancedSampler(LENGTHS, CLASSES, 1, world_size=2)


def test_nothing_to_balance_by():
    with pytest.raises(ConfigError, match="--balance none"):
        balanced_batches(LENGTHS, {}, 4, 0)


def test_labels_of_languages_and_of_clusters(make_datadir, tmp_path):
    folder = make_datadir(tmp_path / "train", {"hi": 2, "it": 1})
    assert read_labels(folder).memberships == {}
    by_language = read_labels(folder, ["it", "hi"]).memberships
    assert by_language["spkhi0-000"] == (0.0, 1.0) and by_language["spkit0-000"] == (1.0, 0.0)
    assert read_labels(folder, ["c0", "c1"]).memberships == {}
    lines = ["spkhi0-000 c0:1\n", "spkhi0-001 c1:0.75 c0:0.25\n", "spkit0-000 c1:1\n"]
    (folder / "utt2experts").write_text("".join(lines))
    labels = read_labels(folder, ["c0", "c1"])
    assert labels.memberships["spkhi0-001"] == (0.25, 0.75)
    assert labels.classes("experts", ["c0", "c1"])["spkhi0-001"] == "c1"
    assert labels.classes("languages", ["c0", "c1"])["spkhi0-001"] == "hi"


def test_wrong_labels_are_named_at_once(make_datadir, tmp_path):
    folder = make_datadir(tmp_path / "train", {"hi": 2})
    (folder / "utt2experts").write_text("spkhi0-000 c9:1\nspkhi0-001 c0:1\nnobody c0:1\n")
    (folder / "utt2weight").write_text("spkhi0-000 1\nspkhi0-001 heavy\n")
    with pytest.raises(ConfigError) as error:
        read_labels(folder, ["c0", "c1"])
    for words in ("c9", "nobody", "heavy"):
        assert words in str(error.value)


def test_preprocessor_gives_labels_and_draws_a_transcript(backbone):
    labels = Labels(
        memberships={"u": (0.25, 0.75)},
        weights={"u": 0.5},
        alternatives={"u": ("due", "una frase troppo lunga")},
    )
    data = {"speech": np.zeros(16000, np.float32), "text": "uno", "language": "it"}
    tokens = backbone.tokens
    made = Preprocessor(False, tokens, labels=labels)("u", dict(data))
    assert made["memberships"].tolist() == [0.25, 0.75] and made["weight"].tolist() == [0.5]
    np.random.seed(0)
    for train, wanted in ((True, {"uno", "due"}), (False, {"uno"})):
        prepare = Preprocessor(train, tokens, labels=labels, room=5)
        seen = {tokens.decode(prepare("u", dict(data))["text"].tolist()) for _ in range(30)}
        assert seen == wanted
    plain = Preprocessor(True, tokens)("u", dict(data))
    assert plain.keys() == {"speech", "text", "language"}
    assert torch.equal(torch.tensor(plain["text"]), torch.tensor(tokens.encode("uno")))


def test_what_ctc_is_to_hear(make_datadir, make_owsm, tmp_path):
    """``text.ctc`` replaces the text of an utterance in the CTC loss, or leaves it out of it."""
    folder = make_datadir(tmp_path / "data", {"it": 3})
    utts = [line.split()[0] for line in (folder / "text").read_text("utf-8").splitlines()]
    (folder / "text.ctc").write_text(f"{utts[0]} <na>\n{utts[1]} ciao\n", "utf-8")
    labels = read_labels(folder)
    assert labels.ctc == {utts[0]: "<na>", utts[1]: "ciao"}
    tokens = make_owsm().tokens
    prepare = Preprocessor(True, tokens, labels=labels)
    found = [
        prepare(u, {"speech": np.zeros(800), "text": "viene domani", "language": "it"})
        for u in utts
    ]
    sizes = [0, len(tokens.encode("ciao")), len(found[2]["text"])]
    assert [len(f["text_ctc"]) for f in found] == sizes
    assert tokens.decode(found[1]["text_ctc"].tolist()) == "ciao"
    assert tokens.decode(found[0]["text"].tolist()) == "viene domani"
