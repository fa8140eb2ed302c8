"""Word times of the mini corpus: as espeak-ng speaks, in the file as it is decoded."""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import soxr

from espnet_moe.bin import prepare_data
from espnet_moe.data.audio import load_audio
from espnet_moe.data.corpora.alignments import ALIGNMENTS, read_alignments, write_alignments
from espnet_moe.data.corpora.layout import CorpusError
from espnet_moe.data.datadir import load_datadir, validate_datadir
from espnet_moe.data.extras import Word
from espnet_moe.data.formatting import format_datadir
from espnet_moe.data.mini_corpus import MANIFEST, MiniCorpusOptions, make_mini_corpus
from espnet_moe.data.mini_recording import Job, Recorded, align, perform, record
from espnet_moe.data.mini_voices import WordEvent, voices
from espnet_moe.data.utterance import Utterance

TEXTS = {"it": "l'albero è sotto il ponte", "hi": "बैंक रविवार को बंद है", "te": "కోతి ఈరోజు నది దగ్గర లేదు"}


@pytest.fixture(scope="module")
def pool():
    with ProcessPoolExecutor(1, get_context("spawn")) as processes:
        yield processes


def job(path: Path | str, rate: int, language: str = "it", voice: int = 0) -> Job:
    speaker = voices("dev")[voice]
    return Job(TEXTS[language], language, speaker, f"key {voice}", rate, False, str(path))


@pytest.mark.parametrize(
    ("suffix", "rate"),
    [(".flac", 16000), (".mp3", 48000), (".mp3", 32000), (".m4a", 16000), (".m4a", 44100),
     (".opus", 48000)],
)  # fmt: skip
def test_times_are_those_of_the_decoded_file(pool, tmp_path: Path, suffix: str, rate: int) -> None:
    # Where the file's words lie, by correlating each with the sentence as it was spoken.
    task = job(tmp_path / f"x{suffix}", rate)
    take = pool.submit(perform, task).result()
    made: Recorded = pool.submit(record, task).result()
    decoded = load_audio(tmp_path / f"x{suffix}")
    clean = soxr.resample(take.samples, rate, 16000)
    assert [w.word for w in made.words] == TEXTS["it"].split()
    for spoken, written in zip(take.words, made.words, strict=True):
        first, last = round(spoken.start * 16000), round(spoken.end * 16000)
        scores = np.correlate(decoded, clean[first:last], "valid")
        found = int(np.argmax(scores)) / 16000
        assert written.start == pytest.approx(found, abs=0.005)
        assert written.duration == spoken.duration


@pytest.mark.parametrize("language", list(TEXTS))
def test_words_cover_the_speech_and_nothing_else(pool, language: str) -> None:
    take = pool.submit(perform, job("", 16000, language, voice=1)).result()
    assert [word.word for word in take.words] == TEXTS[language].split()
    power = np.convolve(np.square(take.samples), np.full(160, 1 / 160), "same")
    loud = np.flatnonzero(power > 1e-3 * power.max()) / 16000
    assert take.words[0].start == pytest.approx(loud[0], abs=0.1)
    assert take.words[-1].end == pytest.approx(loud[-1], abs=0.1)
    for a, b in zip(take.words, take.words[1:], strict=False):
        assert a.end == pytest.approx(b.start) and 0.05 < a.duration < 1.5


def test_events_are_aligned_by_their_place_in_the_text() -> None:
    events = [WordEvent(0, 0.0), WordEvent(2, 0.1), WordEvent(9, 0.5)]  # "l", "alba", "due"
    assert align("l'alba   due", events, 1.0) == (Word(0.0, 0.5, "l'alba"), Word(0.5, 0.5, "due"))
    # "di una" said as one; words out of order; a last word without time.
    assert align("di una", [WordEvent(0, 0.0)], 1.0) == ()
    assert align("di una", [WordEvent(0, 0.5), WordEvent(3, 0.2)], 1.0) == ()
    assert align("di una", [WordEvent(0, 0.0), WordEvent(3, 1.0)], 1.0) == ()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("aligned")
    sizes = {"size": 2, "dev_size": 1, "test_size": 2}
    for layout, language in (("commonvoice", "hi"), ("kathbath", "te")):
        make_mini_corpus(MiniCorpusOptions(layout, language, **sizes), out / layout, num_jobs=1)
    return out


@pytest.mark.parametrize(
    ("corpus", "language", "split"),
    [("commonvoice", "hi", "test"), ("kathbath", "te", "test"), ("kathbath", "te", "test_noisy")],
)
def test_word_times_reach_formatted_sets(
    corpora: Path, tmp_path: Path, corpus: str, language: str, split: str
) -> None:
    argv = ["--corpus", corpus, "--root", str(corpora / corpus), "--language", language]
    prepare_data.main([*argv, "--out", str(tmp_path / "data"), "--splits", split])
    format_datadir(tmp_path / f"data_{split}", tmp_path / "test")
    validate_datadir(tmp_path / "test")
    data = load_datadir(tmp_path / "test")
    assert len(data.utterances) == 2 == len(data.timings)
    for utt in data.utterances:
        words = data.timings[utt.utt_id]
        assert " ".join(word.word for word in words) == utt.text
        first, last = round(words[0].start * 16000), round(words[-1].end * 16000)
        power = np.square(load_audio(utt.audio))
        silence = np.concatenate([power[: max(0, first - 320)], power[last + 320 :]])
        assert 0 <= first < last <= len(power) and power[first:last].mean() > 2 * silence.mean()


def test_a_corpus_of_before_gets_its_word_times_and_keeps_its_audio(
    corpora: Path, tmp_path: Path
) -> None:
    shutil.copytree(corpora / "commonvoice", tmp_path / "cv")
    folder = next((tmp_path / "cv").rglob(MANIFEST)).parent
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.mp3")}
    expected = (folder / ALIGNMENTS).read_text()
    (folder / ALIGNMENTS).unlink()
    parameters = json.loads((folder / MANIFEST).read_text())["parameters"]
    options = MiniCorpusOptions(
        **{key: value for key, value in parameters.items() if key not in ("version", "text")}
    )
    make_mini_corpus(options, tmp_path / "cv", num_jobs=1)
    assert (folder / ALIGNMENTS).read_text() == expected
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.mp3")} == times


def test_real_corpora_have_none_and_damage_is_named(tmp_path: Path) -> None:
    utt = Utterance("a-1", str(tmp_path / "it/clips/x y.mp3"), "uno", "a", "it", "train")
    assert read_alignments(tmp_path, [utt]) == {}
    (tmp_path / "it/clips").mkdir(parents=True)
    write_alignments(tmp_path / "it" / ALIGNMENTS, {"clips/x y.mp3": (Word(0.1, 0.5, "uno"),)})
    assert read_alignments(tmp_path, [utt]) == {"a-1": (Word(0.1, 0.5, "uno"),)}
    (tmp_path / "it" / ALIGNMENTS).write_text("clips/x.mp3 1 0.1 uno\n")
    with pytest.raises(CorpusError, match="alignments.ctm:1: 'clips/x.mp3 1 0.1 uno'"):
        read_alignments(tmp_path, [utt])
