"""The Common Voice reader: each release's columns and folders, and each way to be wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest

from espnet_moe.data.corpora.commonvoice import read_commonvoice, release_of
from espnet_moe.data.corpora.layout import CorpusError

Make = Callable[..., Path]
CLIENT = f"{1 << 500:0128x}"  # the first speaker of the common_voice fixture


@pytest.mark.parametrize("version", [11, 12, 13, 16, 17, 21, 27])
def test_common_voice_columns_of_every_release(
    version: int, tmp_path: Path, common_voice: Make
) -> None:
    folder = common_voice(tmp_path / f"cv-corpus-{version}.0-2024-03-15" / "hi", version)
    utterances = read_commonvoice(tmp_path, "hi")
    assert [utt.split for utt in utterances] == ["train", "train", "dev", "test"]
    first, second = utterances[:2]
    assert first.text == 'यह, "एक" है।'  # double quotes are text
    assert (first.gender, second.gender) == ("f", "m")
    assert first.audio == str(folder / "clips/common_voice_hi_00.mp3")
    assert first.utt_id == f"{first.speaker}-common_voice_hi_00"
    assert first.speaker == second.speaker == f"cv_hi_{CLIENT[:16]}"
    assert len({utt.speaker for utt in utterances}) == 3
    assert release_of(folder) == f"{version}.0-2024-03-15"


def test_common_voice_columns_in_another_order_and_new_ones(
    tmp_path: Path, write: Make, common_voice: Make
) -> None:
    folder = common_voice(tmp_path / "hi")
    write(
        folder / "test.tsv",
        ("new", "sentence", "path", "client_id"),
        ("x", "चार", "common_voice_hi_20.mp3", "short id"),
    )
    (utt,) = read_commonvoice(tmp_path, "hi", ["test"])
    assert (utt.text, utt.gender) == ("चार", None)
    assert utt.speaker.startswith("cv_hi_") and utt.utt_id.startswith(utt.speaker + "-")


def test_training_on_validated_leaks_no_speaker_and_no_sentence(
    tmp_path: Path, common_voice: Make, write: Make
) -> None:
    folder = common_voice(tmp_path / "hi")
    dev = (folder / "dev.tsv").read_text().splitlines()[1].split("\t")[0]
    write(
        folder / "validated.tsv",
        ("client_id", "path", "sentence"),
        ("new", "1.mp3", "पाँच"),
        ("new", "2.mp3", "चार।"),  # of test, but for the punctuation
        (dev, "3.mp3", "छह"),  # a speaker of dev
        ("other", "4.mp3", "सात"),
    )
    utterances = read_commonvoice(tmp_path, "hi", train_from="validated")
    assert [u.text for u in utterances if u.split == "train"] == ["पाँच", "सात"]
    assert [u.text for u in utterances if u.split != "train"] == ["तीन", "चार"]


def test_common_voice_in_todays_outer_folder_byte_order_mark_and_crlf(
    tmp_path: Path, common_voice: Make
) -> None:
    outer = tmp_path / "1781715680033-cv-corpus-26.0-2026-06-12-pa-IN"
    folder = common_voice(outer / "cv-corpus-26.0-2026-06-12/pa-IN")
    content = (folder / "train.tsv").read_bytes()
    (folder / "train.tsv").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    for root in (tmp_path, outer, folder.parent, folder):
        utterances = read_commonvoice(root, "pa")
        assert len(utterances) == 4 and utterances[1].text == "दो"
        assert {utt.language for utt in utterances} == {"pa"}
    renamed = folder.rename(tmp_path / "my_download")
    assert len(read_commonvoice(renamed, "pa")) == 4


def test_common_voice_durations(tmp_path: Path, write: Make, common_voice: Make) -> None:
    folder = common_voice(tmp_path / "hi")
    durations = folder / "clip_durations.tsv"
    write(durations, ("clip", "duration[ms]"), ("common_voice_hi_00.mp3", "4536"))
    assert [utt.duration for utt in read_commonvoice(tmp_path, "hi")] == [4.536, None, None, None]
    write(durations, ("clip", "duration[ms]"), ("common_voice_hi_00.mp3", "long"))
    with pytest.raises(CorpusError, match="clip_durations.tsv:2: 'long'"):
        read_commonvoice(tmp_path, "hi")


def test_common_voice_speakers_stay_apart_when_their_names_begin_alike(
    tmp_path: Path, write: Make, common_voice: Make
) -> None:
    folder = common_voice(tmp_path / "hi")
    rows = [(f"{'ab' * 20}{n}{'0' * 87}", f"{n}.mp3", "एक") for n in range(5)]
    write(folder / "train.tsv", ("client_id", "path", "sentence"), *rows)
    assert len({utt.speaker for utt in read_commonvoice(tmp_path, "hi", ["train"])}) == 5


def test_common_voice_rows_with_a_wrong_number_of_fields(
    tmp_path: Path, common_voice: Make
) -> None:
    folder = common_voice(tmp_path / "hi")
    path = folder / "train.tsv"
    good = path.read_text().splitlines()[1]
    path.write_text(path.read_text() + "too\tfew\n" + good + "\textra\n" + good + "\n")
    with pytest.raises(CorpusError, match="2 rows of train.tsv do not have 13 tab-sep") as caught:
        read_commonvoice(tmp_path, "hi")
    assert f"{path}:4: 2 of 13 fields\n" in str(caught.value)
    assert f"{path}:5: 14 of 13 fields" in str(caught.value)


def test_common_voice_that_is_another_folder(
    tmp_path: Path, write: Make, common_voice: Make
) -> None:
    with pytest.raises(CorpusError, match="gone does not exist; expected is:\n    cv-corpus-"):
        read_commonvoice(tmp_path / "gone", "hi")
    with pytest.raises(CorpusError, match=r"no train.tsv of locale hi .*locales: none.*expected"):
        read_commonvoice(tmp_path, "hi")
    folder = common_voice(tmp_path / "cv-corpus-26.0-2026-06-12/it")
    with pytest.raises(CorpusError, match=r"no train.tsv of locale te .*\(locales: it\)"):
        read_commonvoice(tmp_path, "te")
    with pytest.raises(CorpusError, match="'xx'; legal are en, hi, it, pa, te"):
        read_commonvoice(tmp_path, "xx")
    with pytest.raises(CorpusError, match="no split 'validated'; legal are train, dev, test"):
        read_commonvoice(tmp_path, "it", ["train", "validated"])
    write(folder / "train.tsv", ("client_id", "file", "sentence"), ("a", "b", "c"))
    with pytest.raises(CorpusError, match="train.tsv:1: no column path among 'client_id file"):
        read_commonvoice(tmp_path, "it")
    (folder / "train.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorpusError, match="train.tsv is not UTF-8"):
        read_commonvoice(tmp_path, "it")
    common_voice(folder)
    (folder / "dev.tsv").unlink()
    with pytest.raises(CorpusError, match="dev.tsv does not exist; expected is"):
        read_commonvoice(tmp_path, "it")


def test_common_voice_releases_are_not_mixed_and_deltas_refused(
    tmp_path: Path, write: Make, common_voice: Make
) -> None:
    delta = tmp_path / "cv-corpus-26.0-delta-2026-06-12/hi"
    write(delta / "validated.tsv", ("client_id", "path", "sentence"))
    with pytest.raises(CorpusError, match="delta archive: it has no train, dev and test"):
        read_commonvoice(tmp_path, "hi")
    common_voice(tmp_path / "cv-corpus-25.0-2026-03-09/hi")
    assert len(read_commonvoice(tmp_path, "hi")) == 4
    common_voice(tmp_path / "cv-corpus-26.0-2026-06-12/hi")
    with pytest.raises(
        CorpusError, match="more than once; .* --release(.|\n)*corpus-25(.|\n)*corpus-26"
    ):
        read_commonvoice(tmp_path, "hi")


def test_common_voice_release_is_chosen(tmp_path: Path, common_voice: Make) -> None:
    for release in ("6.0-2020-12-11", "26.0-2026-06-12", "26.0-2026-09-01", "27.0-2026-09-11"):
        common_voice(tmp_path / f"cv-corpus-{release}/hi")
    for release in ("6.0", "6.0-2020-12-11", "26.0-2026-06-12", "27.0"):
        utterances = read_commonvoice(tmp_path, "hi", release=release)
        assert all(f"/cv-corpus-{release}" in utt.audio for utt in utterances)
    with pytest.raises(CorpusError, match="more than once(.|\n)*26.0-2026-06(.|\n)*26.0-2026-09"):
        read_commonvoice(tmp_path, "hi", release="26.0")
    for release in ("2", "26", "2026-06-12"):
        with pytest.raises(
            CorpusError, match=f"no release {release} of locale hi .*: 26.0-2026-06-12, 26.0-2026-"
        ):
            read_commonvoice(tmp_path, "hi", release=release)
    common_voice(tmp_path / "other/hi")
    with pytest.raises(CorpusError, match="no release 26.0 .* unknown, in .*other/hi"):
        read_commonvoice(tmp_path / "other", "hi", release="26.0")


def test_large_tables_are_read_quickly(tmp_path: Path, common_voice: Make) -> None:
    """No look-up a row: reading grows with the rows, and opens no clip."""
    folder = common_voice(tmp_path / "hi")
    header, row = (folder / "train.tsv").read_text().splitlines()[:2]
    clip = "common_voice_hi_00.mp3"
    rows = [row.replace(clip, f"common_voice_hi_{n}.mp3") for n in range(20000)]
    (folder / "train.tsv").write_text("\n".join([header, *rows]) + "\n")
    assert len(read_commonvoice(tmp_path, "hi", ["train"])) == 20000
