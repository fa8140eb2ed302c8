"""Kathbath of the hub, IndicVoices and Shrutilipi: each layout, and each way to be wrong."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from espnet_moe.data.corpora.indicvoices import read_indicvoices
from espnet_moe.data.corpora.kathbath import read_kathbath
from espnet_moe.data.corpora.layout import CorpusError
from espnet_moe.data.corpora.prepare import PrepareOptions, prepare_corpus
from espnet_moe.data.corpora.shrutilipi import read_shrutilipi
from espnet_moe.data.sources import parse_source
from espnet_moe.data.utterance import Utterance

Make = Callable[..., Path]


def speakers(utterances: list[Utterance], split: str) -> set[str]:
    return {utt.speaker for utt in utterances if utt.split == split}


# Kathbath of the hub


def rows(first: int, count: int, readers: int = 40) -> list[dict[str, Any]]:
    """Rows of the hub's files; a reader's gender goes by the number."""
    made = []
    for n in range(first, first + count):
        gender = ("Male", "Female")[n % readers % 2]
        name = f"8444{n:06d}-{n % readers}-{gender[0].lower()}.m4a"
        made.append(
            {
                "fname": name,
                "text": f"यह\u00a0घर {n} 'है\"",
                "audio_filepath": {"bytes": b"x", "path": name},
                "lang": "hindi",
                "duration": 4.5,
                "gender": gender,
                "speaker_id": n % readers,
            }
        )
    return made


def write_hub(folder: Path, readers: int = 40) -> Path:
    folder.mkdir(parents=True)
    for n in range(2):
        # As the hub's are: sorted by gender.
        part = sorted(rows(100 * n, 100, readers), key=lambda row: row["gender"])
        pq.write_table(pa.Table.from_pylist(part), folder / f"train-{n:05d}-of-00002.parquet")
    part = rows(900, 30, readers)
    pq.write_table(pa.Table.from_pylist(part), folder / "valid-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize(
    ("place", "roots"),
    [
        ("hindi", (".", "hindi")),
        ("v1/hindi", (".", "v1", "v1/hindi")),
        ("data/hindi", (".", "data", "data/hindi")),
        ("hindi/data", (".", "hindi")),
    ],
)
def test_hub_layouts(place: str, roots: tuple[str, ...], tmp_path: Path) -> None:
    folder = write_hub(tmp_path / place)
    for root in roots:
        utterances = read_kathbath(tmp_path / root, "hi")
        assert len({utt.utt_id for utt in utterances}) == len(utterances)
        assert [*dict.fromkeys(utt.split for utt in utterances)] == ["train", "dev", "test"]
        utt = next(utt for utt in utterances if utt.utt_id == "kb_hi_1-8444000001")
        assert (utt.speaker, utt.gender, utt.duration) == ("kb_hi_1", "f", 4.5)
        assert utt.text == "यह\u00a0घर 1 'है\""
        source = parse_source(utt.audio)
        assert source.path == str(folder / "train-00000-of-00002.parquet")
        table = pq.read_table(source.path)
        assert table["fname"][source.row].as_py() == "8444000001-1-f.m4a"


def test_hub_test_is_of_speakers_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_hub(tmp_path / "hindi")
    with caplog.at_level("INFO"):
        utterances = read_kathbath(tmp_path, "hi")
    test = speakers(utterances, "test")
    assert 2 <= len(test) <= 3  # a twentieth of 200 utterances, 5 a reader
    assert not test & (speakers(utterances, "train") | speakers(utterances, "dev"))
    assert speakers(utterances, "dev") <= speakers(utterances, "train")
    assert f"test is made of {len(test)} of the 40 speakers of train" in caplog.text
    assert "of 30 utterances of dev are left out: their speakers are in test" in caplog.text
    with pytest.raises(CorpusError, match="no split 'test_noisy'; legal are train, dev, test"):
        read_kathbath(tmp_path, "hi", ["test", "test_noisy"])


def test_archives_are_taken_before_the_hub(tmp_path: Path, kathbath: Make) -> None:
    write_hub(tmp_path / "hindi")
    kathbath(tmp_path / "kb_data_clean_m4a")
    assert len(read_kathbath(tmp_path, "hi")) == 6


def test_hub_rows_that_are_bad(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_hub(tmp_path / "hindi")
    path = folder / "valid-00000-of-00001.parquet"
    part = rows(900, 5)
    part[0]["fname"] = "844424931069710-229-f.m4a"  # matras without their letters
    part[1] |= {"text": None, "gender": None}
    part[2]["fname"] = "another name.wav"
    pq.write_table(pa.Table.from_pylist(part), path)
    utterances = [u for u in read_kathbath(tmp_path, "hi") if u.split == "dev"]
    assert "844424931069710-229-f left out, a known bad file" in caplog.text
    found = {utt.speaker: (utt.utt_id, utt.text, utt.gender) for utt in utterances}
    assert found["kb_hi_21"] == ("kb_hi_21-8444000901", "", None)
    assert found["kb_hi_22"][0] == "kb_hi_22-another_name"
    part[3]["speaker_id"], part[4]["fname"] = None, ""
    pq.write_table(pa.Table.from_pylist(part), path)
    with pytest.raises(CorpusError, match=r"without a name or speaker:\n  row 3: .*\n  row 4: fn"):
        read_kathbath(tmp_path, "hi")


def test_hub_that_is_half_fetched(tmp_path: Path) -> None:
    folder = write_hub(tmp_path / "hindi")
    first = folder / "train-00000-of-00002.parquet"
    content = first.read_bytes()
    first.unlink()
    with pytest.raises(
        CorpusError, match="has 1 of the 2 files train-.*fetch the others; expected"
    ):
        read_kathbath(tmp_path, "hi")
    first.write_bytes(content[: len(content) // 2])
    with pytest.raises(CorpusError, match="train-00000-of-00002.parquet is damaged or no parquet"):
        read_kathbath(tmp_path, "hi")
    first.write_bytes(content)
    columns = pq.read_table(first).column_names
    pq.write_table(pq.read_table(first).drop_columns(["speaker_id"]), first)
    with pytest.raises(CorpusError, match="no column speaker_id among fname, text, .*expected"):
        read_kathbath(tmp_path, "hi")
    first.write_bytes(content)
    pq.write_table(pq.read_table(first).drop_columns(["audio_filepath"]), first)
    with pytest.raises(CorpusError, match="has no column of audio .* among fname, text"):
        read_kathbath(tmp_path, "hi")
    assert "audio_filepath" in columns
    first.write_bytes(content)
    (folder / "valid-00000-of-00001.parquet").unlink()
    with pytest.raises(CorpusError, match=r"no valid-\*.parquet in .*; expected is"):
        read_kathbath(tmp_path, "hi")
    with pytest.raises(CorpusError, match="no folder telugu of the clean .*hindi.*expected is"):
        read_kathbath(tmp_path, "te")


def test_a_row_that_is_there_twice(tmp_path: Path) -> None:
    folder = write_hub(tmp_path / "hindi")
    first, second = (folder / f"train-{n:05d}-of-00002.parquet" for n in range(2))
    second.write_bytes(first.read_bytes())
    with pytest.raises(CorpusError, match="100 utterances of .* are listed more than once"):
        prepare_corpus(PrepareOptions("kathbath", str(tmp_path), "hi"), tmp_path / "data/kb")


def test_transcripts_without_their_audio(tmp_path: Path, kathbath: Make) -> None:
    folder = kathbath(tmp_path / "kb_data_clean_m4a")
    for path in (folder / "hindi/train/audio").iterdir():
        path.unlink()
    with pytest.raises(
        CorpusError, match="no audio file of split train is good; was the audio unp"
    ):
        prepare_corpus(PrepareOptions("kathbath", str(tmp_path), "hi"), tmp_path / "data/kb")
    assert not (tmp_path / "data").exists()


# IndicVoices


def segment(start: float, end: float, text: str, speaker: object = 0) -> dict[str, Any]:
    return {"start": start, "end": end, "text": text, "speaker_id": speaker}


def write_recording(path: Path, speaker: str | None, *normalized: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".wav").write_bytes(b"audio")
    document = {"verbatim": [], "normalized": list(normalized), "gender": "Female"}
    if speaker is not None:
        document["speaker_id"] = speaker
    path.write_text(json.dumps(document), "utf-8")
    return path


def write_indicvoices(folder: Path, readers: int = 20) -> Path:
    for n in range(readers):
        parts = [segment(3 * i, 3 * i + 2.5, f"यह घर {i}") for i in range(4)]
        write_recording(folder / f"train/281474976{n:06d}_0.json", f"S42{n:03d}", *parts)
    for n in range(3):
        # The first reader is in train too.
        write_recording(folder / f"valid/v{n}.json", f"S42{n * 50:03d}", segment(0.5, 4.25, "दो"))
    return folder


def test_indicvoices_layout(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_indicvoices(tmp_path / "Hindi/v1")
    for root in (tmp_path, tmp_path / "Hindi", folder):
        caplog.clear()
        with caplog.at_level("INFO"):
            utterances = read_indicvoices(root, "hi")
        assert "4 of 80 utterances of train are left out: their speakers are in test" in caplog.text
        assert speakers(utterances, "test") == {f"iv_hi_S42{n:03d}" for n in (0, 50, 100)}
        assert len(speakers(utterances, "dev")) == 1 and len(speakers(utterances, "train")) == 18
        assert not speakers(utterances, "dev") & speakers(utterances, "train")
    utt = utterances[-1]
    assert (utt.utt_id, utt.gender, utt.duration) == ("iv_hi_S42100-v2_0001", "f", 3.75)
    assert (utt.text, utt.audio) == ("दो", f"{folder}/valid/v2.wav#t=0.5,4.25")
    assert [u.split for u in read_indicvoices(tmp_path, "hi", ["dev"])] == ["dev"] * 4


def test_indicvoices_segments_left_out_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_indicvoices(tmp_path / "Hindi/v1")
    write_recording(
        folder / "valid/v0.json",
        "S42000",
        segment(-0.2, 2, "एक [noise] दो [unintelligible]"),
        segment(2, 32.5, "तीन"),
        segment(2, 32, "तीस"),
        segment(2, 2.04, "चार"),
        segment(2, 2.05, "पाँच"),
        segment(3, 4, "[laughter] ।"),
        segment(4, 5, ""),
        segment(5, 6, "छह", speaker=1),
    )
    with caplog.at_level("INFO"):
        utterances = read_indicvoices(tmp_path, "hi", ["test"])
    mine = [(utt.utt_id[-4:], utt.text, utt.duration) for utt in utterances if "v0" in utt.utt_id]
    assert mine == [
        ("0001", "एक दो", 2.0),
        ("0003", "तीस", 30.0),
        ("0005", "पाँच", pytest.approx(0.05)),
    ]
    assert (
        "5 utterances of 3 recordings; left out: 1 longer than 30 s, 1 of another speaker than the "
        "recording's, 1 shorter than 0.05 s, 2 without text" in caplog.text
    )
    (folder / "valid/untold.wav").write_bytes(b"audio")
    read_indicvoices(tmp_path, "hi")
    assert "1 .wav have no .json (untold, …)" in caplog.text


def test_indicvoices_speakers_that_only_segments_name(tmp_path: Path) -> None:
    folder = write_indicvoices(tmp_path / "Hindi/v1")
    parts = [segment(n, n + 1, "एक", name) for n, name in enumerate(("S7", 0, 1, "S8"))]
    write_recording(folder / "valid/v9.json", None, *parts)
    found = {u.speaker for u in read_indicvoices(tmp_path, "hi", ["test"]) if "v9" in u.utt_id}
    assert found == {"iv_hi_S7", "iv_hi_v9_0", "iv_hi_v9_1", "iv_hi_S8"}


def test_indicvoices_that_is_otherwise(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="gone does not exist; expected is:\n    <Hindi"):
        read_indicvoices(tmp_path / "gone", "hi")
    with pytest.raises(CorpusError, match=r"no Hindi/v1/train in .*folders: none.; expected"):
        read_indicvoices(tmp_path, "hi")
    folder = write_indicvoices(tmp_path / "Hindi/v1")
    with pytest.raises(CorpusError, match=r"no Punjabi/v1/train in .*folders: Hindi.; expected"):
        read_indicvoices(tmp_path, "pa")
    with pytest.raises(CorpusError, match="no IndicVoices language 'it'; legal are hi, pa, te"):
        read_indicvoices(tmp_path, "it")
    (folder / "train/bad.json").write_text('{"normalized": [')
    write_recording(folder / "train/worse.json", "S1", {"start": 0, "end": 1})
    (folder / "train/list.json").write_text("[]")
    with pytest.raises(CorpusError, match="3 files are not as expected") as caught:
        read_indicvoices(tmp_path, "hi")
    for what in ("bad.json: JSONDecodeError", "worse.json: KeyError: 'text'", "list.json: TypeErr"):
        assert what in str(caught.value)
    for name in ("bad", "worse", "list"):
        (folder / f"train/{name}.json").unlink()
    write_indicvoices(tmp_path / "Hindi/v2")
    with pytest.raises(CorpusError, match="holds Hindi more than once(.|\n)*v1\n(.|\n)*v2"):
        read_indicvoices(tmp_path, "hi")
    assert read_indicvoices(tmp_path / "Hindi/v2", "hi")
    for path in (folder / "valid").glob("*.json"):
        path.unlink()
    with pytest.raises(CorpusError, match=r"no <name>.json in .*valid; expected is"):
        read_indicvoices(folder, "hi")
    os.rename(folder / "valid", folder / "unpacking")
    with pytest.raises(CorpusError, match="valid does not exist; expected is"):
        read_indicvoices(folder, "hi")


# Shrutilipi


def write_shrutilipi(
    root: Path,
    bulletins: int = 60,
    tables: str = "shrutilipi_fairseq/punjabi",
    audio: str = "data/punjabi",
    published: str = "/nlsasfs/home/newsonair_v5/punjabi",
) -> Path:
    lines, texts = [published], []
    for n in range(bulletins):
        for sentence in (1, 2):
            clip = f"Chandigarh-Punjabi-1830-2019{n:04d}/sent_{sentence}.wav"
            path = root / audio / clip
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"audio")
            lines.append(f"{clip}\t{16000 * sentence + 800}")
            texts.append(f"ਇਹ ਘਰ {n} {sentence}")
    folder = root / tables
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "train.wrd").write_text("\n".join(texts) + "\n", "utf-8")
    return folder


@pytest.mark.parametrize(
    ("tables", "audio"),
    [
        ("shrutilipi_fairseq/punjabi", "data/punjabi"),
        ("shrutilipi_fairseq/punjabi", "newsonair_v5/punjabi"),
        ("shrutilipi_fairseq/punjabi", "punjabi"),
        ("punjabi", "punjabi"),
        ("data/punjabi", "data/punjabi"),
    ],
)
def test_shrutilipi_layouts(tables: str, audio: str, tmp_path: Path) -> None:
    write_shrutilipi(tmp_path, tables=tables, audio=audio)
    for root in {tmp_path, tmp_path / tables}:
        utterances = read_shrutilipi(root, "pa")
        assert len(utterances) == 120 and all(Path(u.audio).is_file() for u in utterances)
        parts = [speakers(utterances, split) for split in ("train", "dev", "test")]
        assert [len(part) for part in parts] == [54, 3, 3] and len(set.union(*parts)) == 60
        utt = next(u for u in utterances if u.audio.endswith("20190007/sent_2.wav"))
        assert utt.utt_id == "sl_pa_Chandigarh_Punjabi_1830_20190007-sent_2"
        assert (utt.text, utt.duration) == ("ਇਹ ਘਰ 7 2", 2.05)


def test_shrutilipi_folder_of_the_publisher_is_used_where_its_audio_is(tmp_path: Path) -> None:
    here = tmp_path / "here"
    published = str(tmp_path / "shared/newsonair_v5/punjabi")
    write_shrutilipi(here, audio="../shared/newsonair_v5/punjabi", published=published)
    utterances = read_shrutilipi(here, "pa")
    assert all(utt.audio.startswith(f"{published}/") for utt in utterances)
    # It exists here by chance, and has nothing in it.
    other = tmp_path / "other"
    (tmp_path / "empty").mkdir()
    write_shrutilipi(other, published=str(tmp_path / "empty"))
    assert all(u.audio.startswith(f"{other}/data/") for u in read_shrutilipi(other, "pa"))


def test_shrutilipi_lines_stay_aligned_where_some_are_empty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_shrutilipi(tmp_path)
    texts = (folder / "train.wrd").read_text("utf-8").split("\n")
    texts[0], texts[5], texts[119] = "", "।", " "
    (folder / "train.wrd").write_text("\n".join(texts), "utf-8")
    table = (folder / "train.tsv").read_text("utf-8").split("\n")
    table[8] = f"{table[8].partition(chr(9))[0]}\t{30 * 16000 + 1}"  # and one is too long
    (folder / "train.tsv").write_text("\n".join(table), "utf-8")
    with caplog.at_level("INFO"):
        utterances = read_shrutilipi(tmp_path, "pa")
    assert len(utterances) == 116
    assert "116 utterances; left out: 1 longer than 30 s, 3 without text" in caplog.text
    for utt in utterances:
        bulletin, sentence = Path(utt.audio).parts[-2:]
        assert utt.text.split()[2:] == [str(int(bulletin[-4:])), sentence[5]]


def test_shrutilipi_that_is_otherwise(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no punjabi/train.tsv in .*there: nothing.; expected"):
        read_shrutilipi(tmp_path, "pa")
    folder = write_shrutilipi(tmp_path)
    with pytest.raises(CorpusError, match=r"no telugu/train.tsv in .*there: data, shruti"):
        read_shrutilipi(tmp_path, "te")
    table, texts = folder / "train.tsv", folder / "train.wrd"
    good, words = table.read_text("utf-8"), texts.read_text("utf-8")
    texts.write_text(words + "ਇੱਕ ਹੋਰ\n", "utf-8")
    with pytest.raises(
        CorpusError, match="names 120 files, but train.wrd beside it has 121 transc"
    ):
        read_shrutilipi(tmp_path, "pa")
    texts.unlink()
    with pytest.raises(CorpusError, match="train.wrd does not exist; expected is"):
        read_shrutilipi(tmp_path, "pa")
    texts.write_text(words, "utf-8")
    table.write_text(good + "a/b.wav\tmany\nsent_1.wav\t3\n", "utf-8")
    with pytest.raises(CorpusError, match="2 lines are not(.|\n)*tsv:122: 'a/b.wav(.|\n)*no bull"):
        read_shrutilipi(tmp_path, "pa")
    table.write_text("/nowhere\n", "utf-8")
    with pytest.raises(CorpusError, match="train.tsv names no file|names 0 files"):
        read_shrutilipi(tmp_path, "pa")
    table.write_text(good, "utf-8")
    (tmp_path / "data").rename(tmp_path / "not_unpacked")
    with pytest.raises(
        CorpusError, match="/nlsasfs/.* is not there; was the audio unpacked.; expect"
    ):
        read_shrutilipi(tmp_path, "pa")
    write_shrutilipi(tmp_path, tables="data/punjabi")
    with pytest.raises(CorpusError, match="holds train.tsv of punjabi more than once"):
        read_shrutilipi(tmp_path, "pa")
