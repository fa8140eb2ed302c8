"""Filtering by the baseline's error rate, against a Levenshtein distance written out here."""

from pathlib import Path

import pytest

from espnet_moe.bin import filter_utterances as command
from espnet_moe.config import ConfigError
from espnet_moe.data.confidence import FilterOptions, filter_utterances
from espnet_moe.data.datadir import DataDirError, load_datadir, write_datadir
from espnet_moe.data.extras import Extras
from espnet_moe.data.normalize import normalize
from espnet_moe.data.utterance import Utterance

TEXTS = {"a-1": "uno due tre", "a-2": "la casa", "b-1": "ciao", "b-2": "nove"}
HYPOTHESES = {"a-1": "Uno, due tre!", "a-2": "la rosa", "b-1": "qqqqqqqq", "b-2": ""}


def distance(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for i, x in enumerate(one, start=1):
        above, row[0] = row[:], i
        for j, y in enumerate(other, start=1):
            row[j] = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y))
    return row[-1]


def rate(key: str) -> float:
    reference = normalize(TEXTS[key], "it")
    return 100 * distance(reference, normalize(HYPOTHESES[key], "it")) / len(reference)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    utterances = [
        Utterance(key, f"/x/{key}.wav", text, key[0], "it", "train", duration=1.0)
        for key, text in TEXTS.items()
    ]
    write_datadir(
        tmp_path / "train_it",
        utterances,
        num_samples=dict.fromkeys(TEXTS, 16000),
        raw_text=TEXTS,
        skipped={"z-1": "too long"},
        extras=Extras(alternatives={"a-1": ("1 2 3",), "b-1": ("salve",)}),
        corpora=["MLS"],
    )
    return tmp_path / "train_it"


def write_hypotheses(path: Path, table: dict[str, str]) -> Path:
    path.write_text("".join(f"{key} {text}".strip() + "\n" for key, text in table.items()))
    return path


@pytest.fixture
def hypotheses(tmp_path: Path) -> Path:
    return write_hypotheses(tmp_path / "text", HYPOTHESES)


def test_drop_leaves_out_and_lists(source: Path, hypotheses: Path, tmp_path: Path) -> None:
    got = filter_utterances(source, hypotheses, tmp_path / "clean", FilterOptions(max_cer=60))
    assert got.cer == pytest.approx({key: rate(key) for key in TEXTS})
    assert set(got.dropped) == {"b-1", "b-2"} == {key for key in TEXTS if rate(key) > 60}
    data = load_datadir(tmp_path / "clean")
    assert [utt.utt_id for utt in data.utterances] == ["a-1", "a-2"]
    assert set(data.num_samples) == set(data.raw_text) == {"a-1", "a-2"}
    assert data.alternatives == {"a-1": ("1 2 3",)} and not data.weights
    assert data.corpora == ("MLS",)
    assert data.skipped["z-1"] == "too long" and "200.0 % > 60 %" in data.skipped["b-1"]


def test_the_threshold_itself_stays(source: Path, hypotheses: Path, tmp_path: Path) -> None:
    got = filter_utterances(source, hypotheses, tmp_path / "clean", FilterOptions(max_cer=100))
    assert set(got.dropped) == {"b-1"}


def test_weight_is_one_minus_cer(source: Path, hypotheses: Path, tmp_path: Path) -> None:
    options = FilterOptions(mode="weight", floor=0.2)
    filter_utterances(source, hypotheses, tmp_path / "weighed", options)
    data = load_datadir(tmp_path / "weighed")
    expected = {key: max(1 - rate(key) / 100, 0.2) for key in TEXTS}
    assert data.weights == pytest.approx(expected, abs=1e-5)
    assert len(data.utterances) == 4 and expected["a-1"] == 1 and expected["b-1"] == 0.2
    # Weights multiply with those that were there.
    filter_utterances(tmp_path / "weighed", hypotheses, tmp_path / "twice", options)
    twice = load_datadir(tmp_path / "twice").weights
    assert twice == pytest.approx({key: value**2 for key, value in expected.items()}, abs=1e-5)


def test_hypotheses_of_another_set(source: Path, tmp_path: Path) -> None:
    path = write_hypotheses(tmp_path / "text", {"a-1": "x", "a-2": "x", "b-1": "x", "q-1": "x"})
    with pytest.raises(DataDirError, match=r"1 utterances have no hypothesis: b-2\n.*q-1"):
        filter_utterances(source, path, tmp_path / "clean", FilterOptions())
    assert not (tmp_path / "clean").exists()


def test_everything_dropped_and_test_sets_are_refused(
    source: Path, tmp_path: Path, hypotheses: Path
) -> None:
    bad = write_hypotheses(tmp_path / "bad", dict.fromkeys(TEXTS, "zzzz zzzz zzzz zzzz"))
    with pytest.raises(DataDirError, match="raise max_cer"):
        filter_utterances(source, bad, tmp_path / "clean", FilterOptions())
    with pytest.raises(DataDirError, match="both what to filter"):
        filter_utterances(source, hypotheses, source, FilterOptions())
    source.rename(tmp_path / "test_it")
    with pytest.raises(DataDirError, match="test set"):
        filter_utterances(tmp_path / "test_it", hypotheses, tmp_path / "clean", FilterOptions())
    assert not (tmp_path / "clean").exists()


def test_options_are_checked_together() -> None:
    with pytest.raises(ConfigError, match=r"max_cer.*mode.*floor"):
        FilterOptions(max_cer=-1, mode="keep", floor=0)


def test_command_line(
    source: Path, hypotheses: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clean"
    command.main(["--data", str(source), "--hyp", str(hypotheses), "--out", str(out)])
    assert "2 utterances, 2 dropped" in capsys.readouterr().out
