"""Parts of recordings and rows of parquet files: the same samples as files of their own have."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soxr

from espnet_moe.data import audio, parquet
from espnet_moe.data.audio import AudioError, is_stored_as, load_audio
from espnet_moe.data.corpora.alignments import ALIGNMENTS, read_alignments, write_alignments
from espnet_moe.data.corpora.checks import check_corpus
from espnet_moe.data.datadir import DataDirError, load_datadir, validate_datadir, write_datadir
from espnet_moe.data.extras import Word
from espnet_moe.data.files import file_sizes
from espnet_moe.data.format_workers import Job, make_chunks
from espnet_moe.data.formatting import FormatOptions, format_datadir
from espnet_moe.data.sources import AudioSource, file_of, parse_source
from espnet_moe.data.utterance import Utterance
from espnet_moe.stamps import Stage, fingerprint

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    yield
    for kept in (audio._decode_kept, parquet._layout, parquet._group):
        kept.cache_clear()


def noise(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return (0.2 * draw.standard_normal((round(seconds * rate), channels))).astype(np.float32)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("a/b c.wav", AudioSource("a/b c.wav")),
        ("a.wav#t=1,2.5", AudioSource("a.wav", 1.0, 2.5)),
        ("a.parquet#t=0,1", AudioSource("a.parquet", 0.0, 1.0)),
        ("x/train-0.parquet#row=12", AudioSource("x/train-0.parquet", row=12)),
        ("#1#t=0.25,10", AudioSource("#1", 0.25, 10.0)),
        *((name, AudioSource(name)) for name in (
            "take #1.wav", "a.wav#t=1", "a.wav#t=1,2,3", "a.wav#t=-1,2", "a.wav#t=1,2.flac",
            "a.wav#row=3", "a.parquet#row=x", "a.parquet", "#t=1,2",
        )),
    ],
)  # fmt: skip
def test_grammar(text: str, source: AudioSource) -> None:
    assert parse_source(text) == source
    assert parse_source(str(source)) == source
    assert str(source) == text
    assert source.whole == (str(source) == file_of(text))


def test_a_file_with_a_number_sign_in_its_name_is_a_file(
    tmp_path: Path, write_audio: Write
) -> None:
    path = write_audio(tmp_path / "take #t=1.wav", noise(0.5, 16000), 16000)
    assert len(load_audio(path)) == 8000
    assert is_stored_as(path, "wav")


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("suffix", "rate"),
    [("wav", 16000), ("wav", 44100), ("flac", 16000), ("flac", 48000), ("mp3", 44100),
     ("opus", 48000), ("m4a", 16000)],
)  # fmt: skip
def test_a_part_is_what_cutting_the_decoded_file_gives(
    suffix: str, rate: int, channels: int, tmp_path: Path, write_audio: Write
) -> None:
    path = write_audio(tmp_path / f"long.{suffix}", noise(4.0, rate, channels), rate)
    frames, rate = audio._decode(path)
    draw = np.random.default_rng(1)
    for _ in range(20):
        start, end = np.sort(draw.uniform(0, 4, 2).round(4))
        if end - start < 0.01:
            continue
        cut = frames[round(start * rate) : round(end * rate)].mean(axis=1, dtype=np.float32)
        wanted = cut if rate == 16000 else soxr.resample(cut, rate, 16000, quality="HQ")
        got = load_audio(str(AudioSource(str(path), start, end)))
        np.testing.assert_allclose(got, wanted, atol=1e-7)
        assert got.dtype == np.float32
        got[:] = 0  # what is returned is the caller's: nothing kept may change with it
    assert not is_stored_as(f"{path}#t=0,1", suffix)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3"])
def test_a_part_past_the_end(suffix: str, tmp_path: Path, write_audio: Write) -> None:
    path = write_audio(tmp_path / f"x.{suffix}", noise(2.0, 16000), 16000)
    assert len(load_audio(f"{path}#t=1.5,2.09")) == pytest.approx(8000, abs=1200)
    with pytest.raises(AudioError, match=r"#t=1.5,2.2 reaches past the end.*has 2.\d+ s"):
        load_audio(f"{path}#t=1.5,2.2")
    with pytest.raises(AudioError, match="reaches past the end"):
        load_audio(f"{path}#t=2.1,2.15")
    with pytest.raises(AudioError, match="ends before it starts"):
        load_audio(f"{path}#t=1.5,1")
    with pytest.raises(AudioError, match=f"gone.{suffix} does not exist"):
        load_audio(f"{tmp_path}/gone.{suffix}#t=0,1")


def test_a_part_of_a_damaged_recording(tmp_path: Path, write_audio: Write) -> None:
    for suffix in ("wav", "flac"):
        path = write_audio(tmp_path / f"x.{suffix}", noise(4.0, 16000), 16000)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(AudioError, match="truncated"):
            load_audio(f"{path}#t=3,3.5")
        (tmp_path / f"x.{suffix}").write_bytes(b"")
        with pytest.raises(AudioError, match="is empty"):
            load_audio(f"{path}#t=3,3.5")


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_part_costs_as_much_as_it_is_long(
    suffix: str, tmp_path: Path, write_audio: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_audio(tmp_path / f"long.{suffix}", np.tile(noise(60, 16000), (20, 1)), 16000)
    monkeypatch.setattr(audio, "_decode", lambda path: pytest.fail("decoded as a whole"))
    began = time.perf_counter()
    for start in range(0, 1199, 12):
        assert len(load_audio(f"{path}#t={start},{start + 1}")) == 16000
    assert time.perf_counter() - began < 5  # a hundred times all of it would be half a minute


def test_a_compressed_recording_is_decoded_once_for_its_parts(
    tmp_path: Path, write_audio: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_audio(tmp_path / "x.mp3", noise(3.0, 16000), 16000)
    decoded = []
    decode = audio._decode
    monkeypatch.setattr(audio, "_decode", lambda path: decoded.append(path) or decode(path))
    for start in (0, 1, 2):
        load_audio(f"{path}#t={start},{start + 1}")
    assert len(decoded) == 1
    write_audio(path, noise(1.0, 16000), 16000)
    with pytest.raises(AudioError, match="past the end"):
        load_audio(f"{path}#t=1.5,2.5")
    assert len(decoded) == 2


def pack(path: Path, files: list[Path], rows_a_group: int = 4, **columns: list) -> Path:
    """A parquet file of audio files, as the hub's."""
    rows = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    table = pa.table({"text": [file.stem for file in files], "audio_filepath": rows, **columns})
    pq.write_table(table, path, row_group_size=rows_a_group)
    return path


def test_rows_are_the_files_they_were_made_of(
    tmp_path: Path, write_audio: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    suffixes = [("wav", 16000), ("m4a", 44100), ("flac", 22050), ("mp3", 48000), ("opus", 48000)]
    files = []
    for n in range(11):
        suffix, rate = suffixes[n % 5]
        samples = noise(0.3 + 0.02 * n, rate, seed=n)
        files.append(write_audio(tmp_path / f"{n}.{suffix}", samples, rate))
    path = pack(tmp_path / "train-0.parquet", files)
    opened = []
    file_class = pq.ParquetFile

    class Counting(file_class):
        def read_row_group(self, group: int, **options: object) -> pa.Table:
            opened.append(group)
            return file_class.read_row_group(self, group, **options)

    monkeypatch.setattr(pq, "ParquetFile", Counting)
    for n, file in enumerate(files):
        np.testing.assert_array_equal(load_audio(f"{path}#row={n}"), load_audio(file))
    assert opened == [0, 1, 2]  # a group is read once
    path = pack(path, files[::-1])  # another file of that name
    np.testing.assert_array_equal(load_audio(f"{path}#row=0"), load_audio(files[-1]))


def test_bad_rows_are_named(tmp_path: Path, write_audio: Write) -> None:
    good = write_audio(tmp_path / "good.wav", noise(0.3, 16000), 16000)
    files = [good, tmp_path / "empty.wav", tmp_path / "bad.m4a"]
    files[1].write_bytes(b"")
    files[2].write_bytes(b"no audio" * 99)
    path = pack(tmp_path / "x.parquet", files)
    with pytest.raises(AudioError, match=r"x.parquet#row=1 is empty: no bytes in .* audio_filep"):
        load_audio(f"{path}#row=1")
    with pytest.raises(AudioError, match=r"x.parquet#row=2 cannot be decoded") as caught:
        load_audio(f"{path}#row=2")
    assert "tmp" not in str(caught.value).replace(str(tmp_path), "")
    with pytest.raises(AudioError, match=r"#row=3: the file has 3 rows"):
        load_audio(f"{path}#row=3")
    with pytest.raises(AudioError, match="gone.parquet does not exist"):
        load_audio(f"{tmp_path}/gone.parquet#row=0")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "text.parquet")
    with pytest.raises(AudioError, match="text.parquet has no column of audio .* among text"):
        load_audio(f"{tmp_path}/text.parquet#row=0")
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:200])
    with pytest.raises(AudioError, match="cut.parquet is damaged or no parquet file"):
        load_audio(f"{tmp_path}/cut.parquet#row=0")


@pytest.fixture
def parts(tmp_path: Path, write_audio: Write) -> list[Utterance]:
    """Utterances of one wav, one mp3 and one parquet file, in no order."""
    for suffix in ("wav", "mp3"):
        write_audio(tmp_path / f"long.{suffix}", noise(6.0, 16000), 16000)
    files = [write_audio(tmp_path / f"{n}.wav", noise(1.0, 16000, seed=n), 16000) for n in range(6)]
    pack(tmp_path / "x.parquet", files, rows_a_group=2)
    places = [f"{tmp_path}/long.{s}#t={n},{n + 1}" for s in ("wav", "mp3") for n in range(6)]
    places += [f"{tmp_path}/x.parquet#row={n}" for n in range(6)]
    order = np.random.default_rng(0).permutation(len(places))
    return [
        Utterance(f"s-{n:02d}", places[place], "uno due", "s", "it", "train")
        for n, place in enumerate(order)
    ]


@pytest.mark.parametrize("jobs", [1, 2])
def test_formatting_reads_what_lies_together_together(
    jobs: int, parts: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_datadir(tmp_path / "data", parts)
    validate_datadir(tmp_path / "data", check_audio=True)
    read: list[object] = []
    group, decode = parquet._group.__wrapped__, audio._decode
    monkeypatch.setattr(audio, "_decode", lambda path: read.append(path) or decode(path))
    monkeypatch.setattr(
        parquet, "_group", lambda *a: read.append(a) or group(*a)
    )  # how often it is asked for matters here, not what is kept
    format_datadir(tmp_path / "data", tmp_path / "dump", FormatOptions(num_jobs=jobs, trim=False))
    data = load_datadir(tmp_path / "dump")
    for before, after in zip(parts, data.utterances, strict=True):
        assert before.utt_id == after.utt_id and after.duration == pytest.approx(1.0, abs=1e-4)
        np.testing.assert_allclose(load_audio(after.audio), load_audio(before.audio), atol=1e-4)
        assert after.audio.startswith(str(tmp_path / "dump"))  # a part is never used as it is
    if jobs == 1:
        places = [place for place in read if isinstance(place, tuple)][:6]
        assert [place[2] for place in places] == [0, 0, 1, 1, 2, 2]
    summary = format_datadir(tmp_path / "data", tmp_path / "dump", FormatOptions(trim=False))
    assert summary.formatted == 0
    (tmp_path / "long.wav").touch()  # parts are done anew when their file has changed
    summary = format_datadir(tmp_path / "data", tmp_path / "dump", FormatOptions(trim=False))
    assert summary.formatted == 6


def test_few_processes_decode_the_same_recording() -> None:
    files = [f"{n:02d}.wav" for n in range(20)]
    sources = [f"a.mp3#t={n},{n + 1}" for n in range(40)] + files
    sources += [f"x.parquet#row={n}" for n in range(10)]
    jobs = [Job(str(n), source, "", "", 1, 2, None) for n, source in enumerate(sources)]
    chunks = make_chunks(jobs, num_jobs=4)
    assert [job for chunk in chunks for job in chunk] == jobs
    of_file = Counter(name for chunk in chunks for name in {file_of(job.source) for job in chunk})
    assert of_file["a.mp3"] == 3 and of_file["x.parquet"] == 1  # 16, 16 and 8; all 10
    # Files by themselves are dealt out as finely as they were.
    alone = make_chunks([job for job in jobs if job.source in files], num_jobs=4)
    assert [len(chunk) for chunk in alone] == [1] * 20
    long = [Job(str(n), f"a.mp3#t={n},{n + 1}", "", "", 1, 2, None) for n in range(1100)]
    assert {len(chunk) for chunk in make_chunks(long, num_jobs=2)[:-1]} == {64}


def test_files_of_parts_are_looked_up(parts: list[Utterance], tmp_path: Path) -> None:
    wav = tmp_path / "long.wav"
    sizes = file_sizes(utt.audio for utt in parts)
    assert len(sizes) == 18 and sizes[f"{wav}#t=3,4"] == wav.stat().st_size
    write_datadir(tmp_path / "data", parts)
    stage = Stage(listed=[str(tmp_path / "data/wav.scp")])
    before = fingerprint(stage)
    wav.touch()
    assert fingerprint(stage) != before
    wav.unlink()
    (tmp_path / "long.mp3").write_bytes(b"")
    checks = check_corpus(parts)
    assert [len(checks.findings[f"{name}_audio"]) for name in ("missing", "empty")] == [6, 6]
    assert f"{wav} does not exist" in checks.bad_audio.values()
    with pytest.raises(DataDirError, match="long.wav#t=0,1 does not exist"):
        validate_datadir(tmp_path / "data")


def test_word_times_of_parts_and_rows(tmp_path: Path) -> None:
    words = (Word(0.5, 0.5, "uno"), Word(1.0, 0.4, "due"), Word(1.6, 0.4, "tre"))
    write_alignments(tmp_path / ALIGNMENTS, {"a/x.wav": words, "a/x.parquet#row=3": words[:1]})
    places = {
        "whole": "x.wav", "first": "x.wav#t=0.4,1.5", "last": "x.wav#t=1.5,2.1",
        "exact": "x.wav#t=0.5,1.4", "through": "x.wav#t=0.7,1.5", "silent": "x.wav#t=3,4",
        "row": "x.parquet#row=3", "other": "x.parquet#row=4",
    }  # fmt: skip
    utterances = [
        Utterance(f"s-{name}", f"{tmp_path}/a/{place}", "uno", "s", "it", "train")
        for name, place in places.items()
    ]
    found = read_alignments(tmp_path, utterances)
    assert set(found) == {"s-whole", "s-first", "s-last", "s-exact", "s-row"}
    assert found["s-whole"] == words and found["s-row"] == words[:1]
    rounded = {
        key: [(round(w.start, 6), round(w.duration, 6), w.word) for w in found[f"s-{key}"]]
        for key in ("first", "last", "exact")
    }
    assert rounded == {
        "first": [(0.1, 0.5, "uno"), (0.6, 0.4, "due")],
        "last": [(0.1, 0.4, "tre")],
        "exact": [(0.0, 0.5, "uno"), (0.5, 0.4, "due")],
    }
