"""From a corpus on disk to data directories: the checks, their counts, and bad audio."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from espnet_moe.bin import prepare_data
from espnet_moe.data.corpora.checks import check_corpus, drop_bad_audio
from espnet_moe.data.corpora.layout import CorpusError
from espnet_moe.data.corpora.prepare import PrepareOptions, prepare_corpus
from espnet_moe.data.datadir import load_datadir, read_datadir, validate_datadir
from espnet_moe.data.utterance import Utterance

Make = Callable[..., Path]


def test_checks_count_what_they_should(tmp_path: Path, touch: Make) -> None:
    base = Utterance(
        "s-1", str(touch(tmp_path / "1.wav")), "यह घर है", "s", "hi", "train", duration=3
    )
    utterances = [
        base,
        replace(
            base, utt_id="s-2", text="क\u093c\u0902 \u0928\u093c", duration=30.5
        ),  # NFC composes
        replace(base, utt_id="s-3", text="abc १२", audio=str(tmp_path / "gone.wav")),
        replace(base, utt_id="s-4", text="?!", audio=str(touch(tmp_path / "0.wav", b""))),
        replace(base, utt_id="s-5", text="यह घर है।", split="test"),
        replace(base, utt_id="t-6", text="क्\u200dष", speaker="t", split="test"),
    ]
    checks = check_corpus(utterances)
    assert checks.utterances == {"train": 4, "test": 2} and checks.speakers == {
        "train": 1,
        "test": 2,
    }
    assert checks.speaker_overlap == {"train/test": 1} == checks.sentence_overlap
    assert {name: ids for name, ids in checks.findings.items() if ids} == {
        "missing_audio": ["s-3"], "empty_audio": ["s-4"], "empty_text": ["s-4"],
        "too_long": ["s-2"], "not_nfc": ["s-2"], "latin_letters": ["s-3"], "digits": ["s-3"],
        "zero_width": ["t-6"],
    }  # fmt: skip
    assert set(checks.bad_audio) == {"s-3", "s-4"}
    assert [utt.utt_id for utt in drop_bad_audio(utterances, checks)] == [
        "s-1",
        "s-2",
        "s-5",
        "t-6",
    ]
    probed = check_corpus(utterances, probe_audio=True)
    assert probed.findings["undecodable_audio"] == ["s-1", "s-2", "s-5", "t-6"]


def test_preparing_writes_data_directories_and_checks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, common_voice: Make
) -> None:
    root = tmp_path / "cv-corpus-26.0-2026-06-12"
    common_voice(root / "hi")
    (root / "hi/clips/common_voice_hi_01.mp3").unlink()
    out = tmp_path / "data/commonvoice_hi"
    with caplog.at_level("INFO"):
        prepare_data.main(
            ["--corpus", "commonvoice", "--root", str(root), "--language", "hi", "--out", str(out)]
        )
    for split in ("train", "dev", "test"):
        validate_datadir(f"{out}_{split}")
        assert {utt.split for utt in read_datadir(f"{out}_{split}")} == {split}
    ((lost, reason),) = load_datadir(f"{out}_train").skipped.items()
    assert lost.endswith("common_voice_hi_01") and "does not exist" in reason
    checks = json.loads(Path(f"{out}_checks.json").read_text())
    assert checks["release"] == "26.0-2026-06-12" and checks["normalizer"] == "espnet_moe-1"
    assert checks["missing_audio"] == {"count": 1, "examples": [lost]}
    assert "check: missing_audio: 1 (" in caplog.text
    assert "check: 0 speakers in both of train/test" in caplog.text


def test_bad_test_audio_is_an_error_unless_allowed(
    tmp_path: Path, touch: Make, common_voice: Make
) -> None:
    folder = common_voice(
        tmp_path / "hi", sentences={"train": ["एक"], "dev": ["दो"], "test": ["तीन", "चार", "पाँच"]}
    )
    (folder / "clips/common_voice_hi_20.mp3").unlink()
    touch(folder / "clips/common_voice_hi_21.mp3", b"")
    options = PrepareOptions("commonvoice", str(tmp_path), "hi")
    out = tmp_path / "data/cv"
    with pytest.raises(
        CorpusError, match="2 audio files of the test set.*bad_test_audio true"
    ) as e:
        prepare_corpus(options, out)
    assert "hi_20.mp3 does not exist" in str(e.value) and "hi_21.mp3 is empty" in str(e.value)
    assert not out.parent.exists()
    prepare_corpus(replace(options, allow_bad_test_audio=True), out)
    data = load_datadir(f"{out}_test")
    assert len(data.utterances) == 1 and len(data.skipped) == 2


def test_a_corpus_without_its_audio_is_an_error(tmp_path: Path, common_voice: Make) -> None:
    folder = common_voice(tmp_path / "hi")
    for clip in (folder / "clips").iterdir():
        clip.unlink()
    with pytest.raises(
        CorpusError, match="no audio file of split train is good; was the audio unp"
    ):
        prepare_corpus(
            PrepareOptions("commonvoice", str(tmp_path), "hi", ["train"]), tmp_path / "data/cv"
        )


def test_speakers_that_splits_share_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kathbath: Make
) -> None:
    kathbath(tmp_path / "kb_data_clean_m4a")
    with caplog.at_level("WARNING"):  # a count of none is no warning
        checks = prepare_corpus(PrepareOptions("kathbath", str(tmp_path), "hi"), tmp_path / "kb")
    assert checks.speaker_overlap == {"train/dev": 1, "train/test": 1, "dev/test": 1}
    assert "check: 1 speakers in both of train/test" in caplog.text


def test_a_clip_in_two_splits_is_an_error(tmp_path: Path, common_voice: Make) -> None:
    folder = common_voice(tmp_path / "hi")
    (folder / "test.tsv").write_text((folder / "train.tsv").read_text())
    with pytest.raises(CorpusError, match="2 utterances of .* are listed more than once"):
        prepare_corpus(PrepareOptions("commonvoice", str(tmp_path), "hi"), tmp_path / "data/cv")


def test_a_set_names_its_corpus_and_release(
    tmp_path: Path, common_voice: Make, kathbath: Make
) -> None:
    """And so does what is made of it."""
    for release in ("25.0-2026-03-09", "26.0-2026-06-12"):
        common_voice(tmp_path / f"cv/cv-corpus-{release}/hi")
    kathbath(tmp_path / "kb_data_clean_m4a")
    common_voice(tmp_path / "renamed/hi")
    argv = ["--language", "hi", "--splits", "train"]
    for corpus, root, *more in (
        ("commonvoice", "cv", "--release", "25.0"),
        ("kathbath", "."),
        ("commonvoice", "renamed"),
    ):
        out = ["--out", str(tmp_path / "data" / f"{corpus}_{root}"), *more]
        prepare_data.main(["--corpus", corpus, "--root", str(tmp_path / root), *out, *argv])
    names = {path.parent.name: path.read_text() for path in tmp_path.glob("data/*/corpus")}
    assert names == {
        "commonvoice_cv_train": "Common Voice 25.0-2026-03-09\n",
        "kathbath_._train": "Kathbath\n",
        "commonvoice_renamed_train": "Common Voice\n",
    }
    checks = json.loads((tmp_path / "data/commonvoice_cv_checks.json").read_text())
    assert checks["release"] == "25.0-2026-03-09"


def test_options_of_other_corpora_are_refused() -> None:
    with pytest.raises(
        CorpusError, match="no corpus 'cv'; legal are commonvoice, mls, kathbath, indicv"
    ):
        PrepareOptions("cv", "/x", "hi")
    with pytest.raises(CorpusError, match="handles.*mls only.*; train_from.*; releases.*only, not"):
        PrepareOptions(
            "kathbath", "/x", "hi", handles="9hr", train_from="validated", release="26.0"
        )


def test_from_each_corpus_to_data_with_real_audio(
    tmp_path: Path,
    tone: Callable[..., np.ndarray],
    write_audio: Callable[..., Path],
    common_voice: Make,
    mls: Make,
    kathbath: Make,
) -> None:
    roots = {
        ("mls", "it"): mls(tmp_path / "mls_italian_opus", "opus"),
        ("kathbath", "hi"): kathbath(tmp_path / "kb_data_clean_m4a"),
        ("commonvoice", "hi"): common_voice(tmp_path / "hi"),
    }
    for (corpus, language), root in roots.items():
        for path in root.rglob("*"):
            if path.suffix in (".mp3", ".opus", ".m4a"):
                write_audio(path, tone(0.3), 16000)
        out = tmp_path / "data" / f"{corpus}_{language}"
        options = PrepareOptions(corpus, str(root), language, probe_audio=True)
        checks = prepare_corpus(options, out)
        assert not checks.bad_audio
        for split in ("train", "dev", "test"):
            validate_datadir(f"{out}_{split}", check_audio=True)
