"""The sets that experts train on: whole speakers, disjoint, and all that a data dir holds."""

import logging
from pathlib import Path

import pytest

from espnet_moe.clustering.assignment import AssignmentError, SplitOptions
from espnet_moe.clustering.expert_sets import describe, join_sets, plan_sets, write_sets
from espnet_moe.data.datadir import DataDir, DataDirError, load_datadir, write_datadir
from espnet_moe.data.extras import Extras
from espnet_moe.data.memberships import read_utt2experts
from espnet_moe.data.utterance import Utterance

EXPERTS = ("c0", "c1")


def write_set(
    path: Path, speakers: int, language: str = "hi", each: int = 4, extras: Extras | None = None
) -> list[str]:
    """Speakers of ``each`` utterances of 1, 2, … seconds."""
    utterances = [
        Utterance(f"{path.name}{s}-{i}", "/x.wav", "एक", f"{path.name}{s}", language, "train")
        for s in range(speakers)
        for i in range(each)
    ]
    samples = {utt.utt_id: 16000 * (1 + int(utt.utt_id[-1])) for utt in utterances}
    write_datadir(
        path, utterances, num_samples=samples, raw_text={}, extras=extras, corpora=["MLS"]
    )
    return [utt.utt_id for utt in utterances]


def load(path: Path, *names: str) -> DataDir:
    return join_sets([path / name for name in names])


def ids(data: DataDir) -> set[str]:
    return {utt.utt_id for utt in data.utterances}


def speakers(data: DataDir) -> set[str]:
    return {utt.speaker for utt in data.utterances}


@pytest.fixture
def sets(tmp_path: Path) -> tuple[DataDir, DataDir, dict[str, dict[str, float]]]:
    """Ten training speakers, whose utterances are spread over two clusters."""
    keys = write_set(tmp_path / "train_a", 10)
    keys += write_set(tmp_path / "dev_a", 2)
    table = {key: {EXPERTS[number % 2]: 1.0} for number, key in enumerate(keys)}
    return load(tmp_path, "train_a"), load(tmp_path, "dev_a"), table


def test_speakers_are_on_one_side_for_all_experts(sets: tuple, tmp_path: Path) -> None:
    train, dev, table = sets
    plan = plan_sets(train, dev, EXPERTS, table, set(), SplitOptions(fraction=0.3))
    write_sets(tmp_path / "out", plan, table)
    written = {p.name: load_datadir(p) for p in (tmp_path / "out/data").iterdir()}
    assert {data.corpora for data in written.values()} == {("MLS",)}
    alone = speakers(written["train_c0"]) | speakers(written["train_c1"])
    assert len(alone) == 3 and alone.isdisjoint(speakers(written["train_joint"]))
    for name in EXPERTS:
        own = {key for key in ids(train) if name in table[key]}
        assert ids(written[f"train_{name}"]) == {k for k in own if k.split("-")[0] in alone}
        # Every speaker has the same audio: three of ten are drawn.
        assert plan.fractions[name] == pytest.approx(0.3)
        assert ids(written[f"dev_{name}"]) == {key for key in ids(dev) if name in table[key]}
        assert set(written[f"train_{name}"].experts.values()) == {f"{name}:1"}
    expected = ids(train) - ids(written["train_c0"]) - ids(written["train_c1"])
    assert ids(written["train_joint"]) == expected
    assert ids(written["train_router"]) == ids(train)
    assert ids(written["dev_joint"]) == ids(written["dev_router"]) == ids(dev)
    assert not any(data.weights for data in written.values())
    for name, data in written.items():
        lines = (tmp_path / "out/stats" / name / "speech_shape").read_text().split()
        assert dict(zip(lines[::2], map(int, lines[1::2]))) == data.num_samples
    assert read_utt2experts(tmp_path / "out/utt2experts", EXPERTS, table.keys()) == table


def test_fraction_one_gives_everything_to_both(sets: tuple) -> None:
    train, dev, table = sets
    plan = plan_sets(train, dev, EXPERTS, table, set(), SplitOptions(fraction=1.0))
    names = {name: {u.utt_id for u in s.utterances} for name, s in plan.sets.items()}
    assert names["train_joint"] == names["train_c0"] | names["train_c1"] == ids(train)
    assert any("fraction 1" in note for note in plan.notes)


def test_soft_memberships_are_weights(tmp_path: Path) -> None:
    keys = write_set(tmp_path / "train_a", 6)
    write_set(tmp_path / "train_a", 6, extras=Extras(weights=dict.fromkeys(keys, 0.5), experts={}))
    dev_keys = write_set(tmp_path / "dev_a", 2)
    table = {key: {"c0": 0.75, "c1": 0.25} for key in [*keys, *dev_keys]}
    train, dev = load(tmp_path, "train_a"), load(tmp_path, "dev_a")
    plan = plan_sets(train, dev, EXPERTS, table, set(), SplitOptions())
    write_sets(tmp_path / "out", plan, table)
    got = {p.name: load_datadir(p) for p in (tmp_path / "out/data").iterdir()}
    assert set(got["train_c1"].weights.values()) == {0.125}  # 0.5 of the utterance, 0.25 of it
    assert set(got["dev_c0"].weights.values()) == {0.75}
    assert set(got["train_joint"].weights.values()) == {0.5}
    assert set(got["train_router"].experts.values()) == {"c0:0.75 c1:0.25"}
    assert ids(got["train_c0"]) == ids(got["train_c1"])


def test_dropped_utterances_train_nothing(sets: tuple, tmp_path: Path) -> None:
    train, dev, table = sets
    dropped = sorted(ids(train))[:5]
    plan = plan_sets(train, dev, EXPERTS, table, dropped, SplitOptions())
    write_sets(tmp_path / "out", plan, table)
    for path in (tmp_path / "out/data").glob("train_*"):
        assert ids(load_datadir(path)).isdisjoint(dropped)
    skipped = load_datadir(tmp_path / "out/data/train_router").skipped
    assert skipped == dict.fromkeys(dropped, "noise of the clustering")


def test_sets_of_an_earlier_assignment_go(sets: tuple, tmp_path: Path) -> None:
    train, dev, table = sets
    for old in ("data/train_c7", "stats/dev_c7", "data/mine"):
        (tmp_path / "out" / old).mkdir(parents=True)
    plan = plan_sets(train, dev, EXPERTS, table, set(), SplitOptions())
    write_sets(tmp_path / "out", plan, table)
    assert not (tmp_path / "out/data/train_c7").exists()
    assert not (tmp_path / "out/stats/dev_c7").exists()
    assert (tmp_path / "out/data/mine").exists()


def test_no_development_utterance(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_set(tmp_path / "train_a", 4, "hi")
    write_set(tmp_path / "train_b", 4, "it")
    write_set(tmp_path / "dev_a", 2, "hi")
    train, dev = load(tmp_path, "train_a", "train_b"), load(tmp_path, "dev_a")
    # c1 is Italian for the most part, and a little Hindi.
    hindi = [u for u in train.utterances if u.language == "hi"]
    table = {
        u.utt_id: {"c1" if u.language == "it" or u in hindi[::4] else "c0": 1.0}
        for u in train.utterances
    } | {u.utt_id: {"c0": 1.0} for u in dev.utterances}
    plan = plan_sets(train, dev, EXPERTS, table, set(), SplitOptions())
    assert [u.utt_id for u in plan.sets["dev_c1"].utterances] == [u.utt_id for u in dev.utterances]
    assert "c1 has no development utterance; takes the 8 of its language hi" in caplog.text
    write_sets(tmp_path / "out", plan, table)
    assert not load_datadir(tmp_path / "out/data/dev_c1").weights
    table |= {u.utt_id: {"c0": 1.0} for u in hindi}
    with pytest.raises(AssignmentError, match=r"expert c1, nor of its languages \(it\)"):
        plan_sets(train, dev, EXPERTS, table, set(), SplitOptions())


def test_few_speakers(sets: tuple, caplog: pytest.LogCaptureFixture) -> None:
    train, dev, table = sets
    caplog.set_level(logging.WARNING)
    one = {key: {"c1" if key.startswith("train_a0-") else "c0": 1.0} for key in ids(train)}
    one |= {key: table[key] for key in ids(dev)}
    plan = plan_sets(train, dev, EXPERTS, one, set(), SplitOptions())
    assert plan.fractions["c1"] == 1 and 0 < plan.fractions["c0"] < 1
    assert "expert c1 has 1 speaker(s)" in caplog.text
    few = [key for key in ids(train) if not key.startswith("train_a0-")]
    with pytest.raises(AssignmentError, match="1 speakers are too few"):
        plan_sets(train, dev, EXPERTS, table, few, SplitOptions())
    with pytest.raises(AssignmentError, match="no training utterance for c1"):
        plan_sets(train, dev, EXPERTS, one, [k for k in one if "c1" in one[k]], SplitOptions())
    with pytest.raises(AssignmentError, match="can be named joint"):
        plan_sets(train, dev, ("joint", "c0"), table, set(), SplitOptions())


def test_describe_counts(sets: tuple) -> None:
    train, _, table = sets
    first = sorted(ids(train))[0]
    sizes, shares = describe(train, EXPERTS, table, {first})
    # c0 has the utterances of 1 and 3 s of ten speakers; the first, of 1 s, is left out.
    assert sizes["c0"] == {"utterances": 19, "hours": round(39 / 3600, 4), "speakers": 10}
    assert sizes["c1"] == {"utterances": 20, "hours": round(60 / 3600, 4), "speakers": 10}
    assert shares == {"c0": {"hi": 1.0}, "c1": {"hi": 1.0}}


def test_sets_that_cannot_be_joined(tmp_path: Path) -> None:
    write_set(tmp_path / "train_a", 1)
    utt = Utterance("s-1", "/x", "x", "s", "it", "train")
    write_datadir(tmp_path / "raw", [utt])
    with pytest.raises(DataDirError, match=r"(?s)raw has no utt2num_samples.*more than one"):
        load(tmp_path, "train_a", "raw", "train_a")
