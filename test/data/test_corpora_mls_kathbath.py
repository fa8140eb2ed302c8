"""The MLS and Kathbath readers: each published layout, and each way to be wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from espnet_moe.data.corpora.kathbath import SPLITS, read_kathbath
from espnet_moe.data.corpora.layout import CorpusError
from espnet_moe.data.corpora.mls import read_mls

Make = Callable[..., Path]


@pytest.mark.parametrize(
    ("name", "suffix"), [("mls_italian", "flac"), ("mls_italian_opus", "opus")]
)
def test_mls_layout(name: str, suffix: str, tmp_path: Path, mls: Make) -> None:
    folder = mls(tmp_path / name, suffix)
    for root in (tmp_path, folder):
        utterances = read_mls(root)
        assert [utt.utt_id for utt in utterances] == [
            "mls_it_12-12_34_000000", "mls_it_12-12_34_000001", "mls_it_90-90_34_000000",
            "mls_it_56-56_78_000000",
        ]  # fmt: skip
        assert [utt.gender for utt in utterances] == ["m", "m", None, "f"]
        assert [utt.split for utt in utterances] == ["train", "train", "dev", "test"]
        assert {utt.duration for utt in utterances} == {12.25}
        assert all(Path(utt.audio).is_file() for utt in utterances)


def test_mls_known_bad_file_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mls: Make
) -> None:
    mls(tmp_path / "mls_italian")
    assert not any("1595" in utt.utt_id for utt in read_mls(tmp_path))
    assert "1595_5616_000923 left out" in caplog.text


def test_mls_handles_limit_the_training_set_only(tmp_path: Path, write: Make, mls: Make) -> None:
    folder = mls(tmp_path / "mls_italian")
    for handles, count in (("9hr", 4), ("1hr/3", 3)):
        assert len(read_mls(tmp_path, handles=handles)) == count
    with pytest.raises(CorpusError, match="no MLS handles '1hr'; legal are 9hr, 1hr/0, .*1hr/5"):
        read_mls(tmp_path, handles="1hr")
    with pytest.raises(CorpusError, match="1hr/0/handles.txt does not exist"):
        read_mls(tmp_path, handles="1hr/0")
    write(folder / "train/limited_supervision/9hr/handles.txt", ("1_2_3",))
    with pytest.raises(CorpusError, match="1 utterances are not in train(.|\n)*1_2_3"):
        read_mls(tmp_path, handles="9hr")


def test_mls_without_genders_and_durations(tmp_path: Path, mls: Make) -> None:
    folder = mls(tmp_path / "mls_italian")
    (folder / "metainfo.txt").unlink()
    (folder / "test/segments.txt").unlink()
    (utt,) = read_mls(tmp_path, splits=["test"])
    assert (utt.gender, utt.duration) == (None, None)


def test_mls_that_is_another_folder(tmp_path: Path, touch: Make, write: Make, mls: Make) -> None:
    with pytest.raises(CorpusError, match="gone does not exist; expected is:\n    mls_italian"):
        read_mls(tmp_path / "gone")
    with pytest.raises(CorpusError, match="no transcripts.txt of mls_italian"):
        read_mls(tmp_path)
    folder = mls(tmp_path / "mls_italian")
    with pytest.raises(CorpusError, match="mls_italian is not the english part"):
        read_mls(folder, "en")
    with pytest.raises(CorpusError, match="no MLS language 'hi'; legal are en, it"):
        read_mls(tmp_path, "hi")
    path = touch(folder / "dev/transcripts.txt", b"90_34_000000 no tab here\nx\n")
    with pytest.raises(CorpusError, match="2 rows of transcripts.txt") as caught:
        read_mls(tmp_path)
    assert f"{path}:1: 1 of 2 fields" in str(caught.value)
    write(path, ("strange-id", "testo"))
    with pytest.raises(CorpusError, match="line 1: 'strange-id'"):
        read_mls(tmp_path)
    path.unlink()
    with pytest.raises(CorpusError, match="dev/transcripts.txt does not exist"):
        read_mls(tmp_path)


def test_kathbath_layout(tmp_path: Path, kathbath: Make) -> None:
    clean = kathbath(tmp_path / "kb_data_clean_m4a")
    for root in (tmp_path, clean, clean / "hindi"):
        utterances = read_kathbath(root, "hi")
        assert [utt.split for utt in utterances] == ["train"] * 2 + ["dev"] * 2 + ["test"] * 2
        first, second = utterances[-2:]
        assert (first.utt_id, first.speaker, first.gender) == ("kb_hi_223-84443", "kb_hi_223", "f")
        assert first.text == "यह\u00a0घर" and second.text == "दो तीन"  # only the first tab parts
        assert first.audio == str(clean / "hindi/test/audio/84443-223-f.m4a")
    known = read_kathbath(tmp_path, "hi", ["test_known"])
    assert {utt.split for utt in known} == {"test_known"}


def test_kathbath_whose_archives_name_the_test_otherwise(tmp_path: Path, kathbath: Make) -> None:
    root = kathbath(tmp_path / "kb_data_clean_m4a")
    usual = read_kathbath(root, "hi")
    (root / "hindi/test").rename(root / "hindi/test_unknown")
    renamed = read_kathbath(root, "hi")
    assert [u.utt_id for u in renamed] == [u.utt_id for u in usual]
    assert any("/test_unknown/" in u.audio for u in renamed if u.split == "test")


def test_kathbath_noisy_recordings_are_splits_with_ids_of_their_own(
    tmp_path: Path, kathbath: Make
) -> None:
    clean_root = kathbath(tmp_path / "kb_data_clean_m4a", name="telugu")
    noisy_root = kathbath(tmp_path / "kb_data_noisy_m4a", name="telugu")
    clean = read_kathbath(tmp_path, "te", ["train", "test"])
    for root in (tmp_path, noisy_root, noisy_root / "telugu", clean_root, clean_root / "telugu"):
        noisy = read_kathbath(root, "te", ["test_known_noisy", "test_noisy"])
        assert [utt.split for utt in noisy] == ["test_noisy"] * 2 + ["test_known_noisy"] * 2
        assert noisy[0].audio == str(noisy_root / "telugu/test/audio/84443-223-f.m4a")
    assert not {utt.utt_id for utt in noisy} & {utt.utt_id for utt in clean}
    assert {utt.speaker for utt in noisy if utt.split == "test_noisy"} < {u.speaker for u in clean}
    everything = read_kathbath(tmp_path, "te", SPLITS)
    assert list(dict.fromkeys(utt.split for utt in everything)) == list(SPLITS)
    assert len({utt.utt_id for utt in everything}) == len(everything) == 12
    # A noisy valid is there, and is nobody's test set.
    with pytest.raises(
        CorpusError, match="no split 'dev_noisy'; legal are train, dev, test, test_k"
    ):
        read_kathbath(tmp_path, "te", ["dev_noisy"])
    with pytest.raises(
        CorpusError, match="no folder telugu of the clean recordings in .* for train"
    ):
        read_kathbath(noisy_root, "te")
    shutil.rmtree(noisy_root)
    with pytest.raises(
        CorpusError, match="no folder telugu of the noisy .* for test_noisy .folders"
    ):
        read_kathbath(tmp_path, "te", ["test", "test_noisy"])


def test_kathbath_known_bad_files_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, write: Make, kathbath: Make
) -> None:
    folder = kathbath(tmp_path / "kb_data_clean_m4a")
    path = folder / "hindi/valid/transcription_n2w.txt"
    write(
        path,
        ("844424931069710-229-f.m4a", "ि"),
        ("844424932918936-888-f.m4a", "ा"),
        ("1-2-m.m4a", "एक"),
    )
    (utt,) = read_kathbath(tmp_path, "hi", ["dev"])
    assert utt.utt_id == "kb_hi_2-1"
    assert caplog.text.count("left out, a known bad file") == 2


def test_kathbath_that_is_another_folder(tmp_path: Path, write: Make, kathbath: Make) -> None:
    with pytest.raises(CorpusError, match="gone does not exist; expected is:\n    kb_data_clean"):
        read_kathbath(tmp_path / "gone", "hi")
    folder = kathbath(tmp_path / "kb_data_clean_m4a")
    with pytest.raises(CorpusError, match="no folder punjabi .*folders: .*hindi"):
        read_kathbath(tmp_path, "pa")
    path = folder / "hindi/test/transcription_n2w.txt"
    write(path, ("1-2-m.m4a",), ("name.m4a", "एक"))
    with pytest.raises(CorpusError, match="test/transcription_n2w.txt:1: 1 of 2 fields"):
        read_kathbath(tmp_path, "hi")
    write(path, ("1-2-x.m4a", "एक"))
    with pytest.raises(CorpusError, match="must be <id>-<speaker>-<m|f>.m4a(.|\n)*n2w.txt:1"):
        read_kathbath(tmp_path, "hi")
    path.unlink()
    with pytest.raises(CorpusError, match="test/transcription_n2w.txt does not exist"):
        read_kathbath(tmp_path, "hi")
