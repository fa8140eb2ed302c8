"""Kathbath of the hub: each layout, and each way to be wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from espnet_moe.data.corpora.kathbath import read_kathbath
from espnet_moe.data.corpora.layout import CorpusError
from espnet_moe.data.corpora.prepare import PrepareOptions, prepare_corpus
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
