"""Kaldi data directories: what is written is read again, and every damage is named."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from espnet_moe.data.combining import combine_datadirs
from espnet_moe.data.datadir import (
    DataDirError,
    load_datadir,
    read_datadir,
    validate_datadir,
    write_datadir,
)
from espnet_moe.data.mixing import MixOptions
from espnet_moe.data.shapes import collect_shapes
from espnet_moe.data.utterance import Utterance, split_of


def utterance(utt_id: str, text: str = "uno due", **fields: object) -> Utterance:
    speaker = utt_id.split("-")[0]
    values = {"audio": f"/nowhere/{utt_id}.wav", "language": "it", "split": "train", **fields}
    return Utterance(utt_id=utt_id, text=text, speaker=speaker, **values)  # type: ignore[arg-type]


@pytest.fixture
def good(tmp_path: Path, tone: Callable[..., np.ndarray], write_audio: Callable[..., Path]) -> Path:
    """A valid data directory of three utterances with audio."""
    utterances = [
        utterance(
            name,
            audio=str(write_audio(tmp_path / "audio" / f"{name} x.wav", tone(0.2), 16000)),
            duration=0.2,
            gender="f",
        )
        for name in ("b-1", "a-2", "a-1")
    ]
    write_datadir(
        tmp_path / "train_it", utterances, num_samples={u.utt_id: 3200 for u in utterances}
    )
    return tmp_path / "train_it"


def edit(path: Path, old: str, new: str) -> None:
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    utterances = [
        utterance("a-1", "नमस्ते\u00a0जी", language="hi", split="test", gender="m", duration=1.25),
        utterance("a-2", "", split="test", duration=2.0),
        utterance(
            "b_c-1", "dell'\u2028alba  ", split="test", audio="/with space/x y.wav", duration=3.0
        ),
    ]
    path = tmp_path / "new" / "test_hi"
    write_datadir(path, reversed(utterances), raw_text={u.utt_id: "Raw!" for u in utterances})
    expected = [*utterances[:2], Utterance(**{**fields(utterances[2]), "text": "dell'\u2028alba"})]
    assert read_datadir(path) == expected
    assert load_datadir(path).raw_text == dict.fromkeys(("a-1", "a-2", "b_c-1"), "Raw!")


def fields(utt: Utterance) -> dict[str, object]:
    return {name: getattr(utt, name) for name in Utterance.__slots__}


def test_files_are_sorted_as_kaldi_sorts_and_maps_match(tmp_path: Path) -> None:
    names = ["a-10", "a-9", "a-A", "a_b-1", "B-1", "é-1", "z-1"]
    write_datadir(tmp_path / "x", [utterance(name) for name in names])
    for file in ("wav.scp", "text", "utt2spk", "spk2utt", "utt2lang"):
        path = tmp_path / "x" / file
        ordered = subprocess.run(
            ["sort", path], env={"LC_ALL": "C"}, capture_output=True, check=True
        ).stdout
        assert path.read_bytes() == ordered, file
    assert "a a-10 a-9 a-A\n" in (tmp_path / "x" / "spk2utt").read_text()
    speakers = [line.split()[1] for line in (tmp_path / "x" / "utt2spk").read_text().splitlines()]
    assert speakers == sorted(speakers, key=str.encode)


def test_writing_again_leaves_nothing_of_before(good: Path) -> None:
    write_datadir(good, [utterance("c-1")])
    assert sorted(path.name for path in good.iterdir()) == [
        "spk2utt", "text", "utt2lang", "utt2spk", "wav.scp",
    ]  # fmt: skip


def test_utterances_against_the_rules_are_not_written(tmp_path: Path) -> None:
    wrong = [
        utterance("a-1"),
        utterance("a-1"),
        Utterance("a b-1", "/x.wav", "t", "a b", "it", "train"),
        Utterance("x-1", "/x.wav", "t", "y", "it", "train"),
        Utterance("a+b-1", "/x.wav", "t", "a+b", "it", "train"),
        utterance("c-1", "two\nlines"),
        utterance("d-1", audio=""),
    ]
    with pytest.raises(DataDirError) as caught:
        write_datadir(tmp_path / "x", wrong)
    message = str(caught.value)
    parts = [
        "a-1 is there more than once",
        "'a b-1' (of a b-1)",
        "begin with its speaker, 'y-'",
        "'a+b' holds",
        "text of c-1 holds a line break",
        "path of d-1 is empty",
    ]
    for part in parts:
        assert part in message
    assert not (tmp_path / "x").exists()


def test_a_good_directory_is_valid(good: Path) -> None:
    validate_datadir(good, check_audio=True)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("text", "a-2 uno due\n", "", "text lacks a-2, which wav.scp has"),
        ("utt2lang", "a-1 it", "a-9 it", "utt2lang has a-9, which wav.scp lacks"),
        ("utt2num_samples", "b-1 3200\n", "", "utt2num_samples lacks b-1"),
        ("utt2num_samples", "b-1 3200", "b-1 many", "'many' of b-1 is not a number"),
        ("utt2gender", "b-1 f", "b-1 female", "b-1 has gender 'female'; legal are m and f"),
        ("utt2lang", "b-1 it", "b-1 xx", "unknown language 'xx'; legal: en, hi, it, pa, te"),
        ("utt2dur", "b-1 0.2000", "b-1 -1", "b-1 has a duration of -1.0 s"),
        ("text", "a-1 uno due\na-2 uno due\n", "a-2 uno due\na-1 uno due\n", "text is not sorted"),
        ("text", "a-1 uno due\n", "a-1 uno\na-1 due\n", "text:2: a-1 is there more than once"),
        ("spk2utt", "a a-1 a-2", "a a-1", "spk2utt does not match utt2spk"),
        ("utt2spk", "b-1 b", "b-1", "utt2spk:3: b-1 has no value"),
        ("wav.scp", "b-1 x.wav", "b-2 x.wav", "b-2 x.wav does not exist"),
    ],
)  # fmt: skip
def test_each_damage_is_named(good: Path, file: str, old: str, new: str, message: str) -> None:
    edit(good / file, old, new)
    with pytest.raises(DataDirError) as caught:
        validate_datadir(good)
    assert message in str(caught.value)


def test_bad_audio_is_named(good: Path) -> None:
    audio = good.parent / "audio"
    (audio / "a-1 x.wav").write_bytes(b"")
    (audio / "a-2 x.wav").write_bytes(b"text")
    with pytest.raises(DataDirError, match="a-1 x.wav is empty") as caught:
        validate_datadir(good)
    assert "a-2" not in str(caught.value)
    with pytest.raises(DataDirError, match="a-2 x.wav cannot be decoded"):
        validate_datadir(good, check_audio=True)


def test_what_is_no_data_directory(tmp_path: Path, good: Path) -> None:
    with pytest.raises(DataDirError, match="gone does not exist; run the stage"):
        read_datadir(tmp_path / "gone")
    (good / "utt2lang").unlink()
    with pytest.raises(DataDirError, match="it has no utt2lang"):
        read_datadir(good)
    (good / "utt2lang").write_bytes(b"a-1 \xff\n")
    with pytest.raises(DataDirError, match="utt2lang is not UTF-8"):
        read_datadir(good)


@pytest.mark.parametrize(
    ("name", "split"),
    [("test_hi", "test"), ("commonvoice_hi_test", "test"), ("kathbath_hi_test_known", "test"),
     ("dev_it", "dev"), ("mls_it_dev", "dev"), ("valid", "dev"), ("train_it_1hr", "train"),
     ("mls_it_train", "train")],
)  # fmt: skip
def test_split_of_a_name(name: str, split: str) -> None:
    assert split_of(name) == split


def formatted(path: Path, names: list[str], skipped: dict[str, str] | None = None) -> Path:
    audio = path.parent / "audio.flac"
    audio.write_bytes(b"there")
    utterances = [utterance(name, gender="m", duration=2.0, audio=str(audio)) for name in names]
    write_datadir(
        path,
        utterances,
        num_samples=dict.fromkeys(names, 32000),
        raw_text=dict.fromkeys(names, "Uno, due"),
        skipped=skipped,
    )
    return path


def test_combining_joins_all_files(tmp_path: Path) -> None:
    first = formatted(tmp_path / "one", ["b-1", "c-1"], {"b-9": "gone"})
    second = formatted(tmp_path / "two", ["a-1", "b-2"], {"d-9": "empty"})
    combine_datadirs([first, second], tmp_path / "train_it")
    data = load_datadir(tmp_path / "train_it")
    assert [utt.utt_id for utt in data.utterances] == ["a-1", "b-1", "b-2", "c-1"]
    assert data.num_samples["b-2"] == 32000 and len(data.raw_text) == 4
    assert data.skipped == {"b-9": "gone", "d-9": "empty"}
    assert "b b-1 b-2\n" in (tmp_path / "train_it" / "spk2utt").read_text()


def test_names_of_corpora_are_kept_and_joined(tmp_path: Path) -> None:
    path = tmp_path / "one"
    formatted(path, ["a-1"])
    assert load_datadir(path).corpora == () and not (path / "corpus").exists()
    names = {"one": ["MLS"], "two": ["Kathbath", "MLS", "Kathbath"], "none": ["Common Voice 26.0"]}
    for name, corpora in names.items():
        data = load_datadir(formatted(tmp_path / name, [f"{name}-1"]))
        kept = [] if name == "none" else data.utterances
        write_datadir(
            tmp_path / name,
            kept,
            num_samples=data.num_samples if kept else {},
            raw_text=data.raw_text if kept else {},
            corpora=corpora,
        )
    assert (tmp_path / "two/corpus").read_text() == "Kathbath\nMLS\n"
    # A set that gives no utterance gives no name.
    combine_datadirs([tmp_path / name for name in names], tmp_path / "all")
    assert load_datadir(tmp_path / "all").corpora == ("Kathbath", "MLS")
    mixed = MixOptions([1, 1])
    combine_datadirs([tmp_path / "one", tmp_path / "two"], tmp_path / "all", mixed)
    assert load_datadir(tmp_path / "all").corpora == ("Kathbath", "MLS")
    combine_datadirs([tmp_path / "one"], tmp_path / "all")
    assert (tmp_path / "all/corpus").read_text() == "MLS\n"
    with pytest.raises(DataDirError, match="corpus 'a\nb' is empty or holds a line break"):
        write_datadir(path, [utterance("a-1")], corpora=["a\nb"])


def test_combining_in_shares_repeats_utterances_with_ids_of_their_own(tmp_path: Path) -> None:
    first = formatted(tmp_path / "one", ["a-1", "a-2", "a-3"])
    second = formatted(tmp_path / "two", ["b-1"])
    combine_datadirs([first, second], tmp_path / "mixed", MixOptions([1, 1], replacement=True))
    data = load_datadir(tmp_path / "mixed")
    ids = [utt.utt_id for utt in data.utterances]
    assert len(ids) == 4 and ids[2:] == ["b-1", "b-1_copy1"]
    assert data.num_samples.keys() == data.raw_text.keys() == set(ids)
    assert {utt.speaker for utt in data.utterances} == {"a", "b"}
    plain = tmp_path / "plain"
    write_datadir(plain, [utterance("z-1")])
    with pytest.raises(DataDirError, match="in formatted sets only"):
        combine_datadirs([plain], tmp_path / "out", MixOptions(max_hours=1.0))


def test_combining_says_where_the_result_is_not_whole(tmp_path: Path) -> None:
    first, second = formatted(tmp_path / "one", ["a-1"]), formatted(tmp_path / "two", ["b-1"])
    (tmp_path / "audio.flac").unlink()
    with pytest.raises(DataDirError, match="both is not valid(.|\n)*audio.flac does not exist"):
        combine_datadirs([first, second], tmp_path / "both")


def test_combining_refuses_what_does_not_fit(tmp_path: Path) -> None:
    first = formatted(tmp_path / "one", ["a-1", "a-2"])
    same = formatted(tmp_path / "same", ["a-2", "a-3"])
    plain = tmp_path / "plain"
    write_datadir(plain, [utterance("z-1")])
    with pytest.raises(DataDirError, match="1 utterance ids are in more than one(.|\n)*a-2"):
        combine_datadirs([first, same], tmp_path / "out")
    with pytest.raises(DataDirError, match="plain are not formatted"):
        combine_datadirs([first, plain], tmp_path / "out")
    with pytest.raises(DataDirError, match="is a source as well"):
        combine_datadirs([first], first)
    with pytest.raises(DataDirError, match="no data directory"):
        combine_datadirs([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shapes_are_lengths(tmp_path: Path) -> None:
    path = formatted(tmp_path / "train_it", ["a-1", "b-1"], {"c-1": "gone"})
    edit(path / "text", "b-1 uno due", "b-1 perché")
    stats = collect_shapes(path, tmp_path / "stats")
    assert (tmp_path / "stats/speech_shape").read_text() == "a-1 32000\nb-1 32000\n"
    assert (tmp_path / "stats/text_shape").read_text() == "a-1 7\nb-1 6\n"
    assert (stats.utterances, stats.skipped, stats.speakers, stats.words) == (2, 1, 2, 3)
    assert (stats.characters, stats.distinct_words) == (12, 3)
    assert stats.hours == round(4 / 3600, 4) and stats.duration_mean == 2.0
    assert (tmp_path / "stats/stats.json").is_file()
    with pytest.raises(DataDirError, match="no utt2num_samples; run format_audio"):
        write_datadir(tmp_path / "plain", [utterance("z-1")])
        collect_shapes(tmp_path / "plain", tmp_path / "stats")
