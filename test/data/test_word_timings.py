"""Times of the mini corpus's words and phones: as spoken, in the file as it is decoded."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import soxr

from espnet_moe.analysis.phones import Consonant, Vowel, phone
from espnet_moe.bin import prepare_data
from espnet_moe.data.audio import load_audio
from espnet_moe.data.corpora.alignments import (
    ALIGNMENTS,
    PHONE_ALIGNMENTS,
    read_alignments,
    write_alignments,
)
from espnet_moe.data.corpora.layout import CorpusError
from espnet_moe.data.datadir import load_datadir, validate_datadir
from espnet_moe.data.extras import Word
from espnet_moe.data.formatting import format_datadir
from espnet_moe.data.mini_corpus import MANIFEST, MiniCorpusOptions, make_mini_corpus
from espnet_moe.data.mini_recording import Job, Recorded, align, perform, place_phones, record
from espnet_moe.data.mini_voices import PhoneEvent, WordEvent, voices
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


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("it", "l a l b e r o e s o t o i l p o n t e"),
        ("hi", "b ɛ̃ k ɾ ə ʋ ɪ ʋ aː ɾ k oː b ʌ n d̪ h ɛː"),
        ("te", "k oː t̪ i iː r oː dʒ u n a d̪ i d̪ a ɡ ɡ a r a l eː d̪ u"),
    ],
)
def test_phones_are_what_is_heard(pool, tmp_path: Path, language: str, expected: str) -> None:
    # Vowels are loud, the closures of voiceless stops silent, in the file as it is decoded.
    made: Recorded = pool.submit(record, job(tmp_path / "x.m4a", 44100, language)).result()
    said = [each.word for each in made.phones]
    assert said == expected.split()
    decoded = load_audio(tmp_path / "x.m4a")
    power: dict[str, list[float]] = {"vowel": [], "closure": []}
    for each in made.phones:
        a, b = round(each.start * 16000), round(each.end * 16000)
        kind = phone(each.word)
        if isinstance(kind, Vowel):
            power["vowel"].append(float(np.square(decoded[a:b]).mean()))
        elif isinstance(kind, Consonant) and kind.manner == "plosive" and not kind.voiced:
            middle = (a + b) // 2
            power["closure"].append(float(np.square(decoded[a + 80 : middle]).mean()))
    assert min(power["vowel"]) > 10 * max(power["closure"])
    for a, b in zip(made.phones, made.phones[1:], strict=False):
        assert 0 < a.duration < 0.4 and a.end <= b.start + 1e-9
    assert made.phones[0].start >= made.words[0].start
    assert made.phones[-1].end == pytest.approx(made.words[-1].end, abs=0.02)


def test_phone_events_leave_the_speech_as_it_was() -> None:
    # The shipped bases and all results are of samples that were made without them.
    code = (
        "import hashlib, sys\n"
        "from espnet_moe.data import mini_voices as m\n"
        "m._PHONEME_EVENTS, m._IPA = int(sys.argv[1]), 2 * int(sys.argv[1])\n"
        "speak = m.Synthesizer()\n"
        "speak._library.espeak_ng_SetRandSeed(1)\n"
        f"for language, text in {TEXTS}.items():\n"
        "    for voice in m.voices('dev')[:3]:\n"
        "        samples = speak(text, language, voice)\n"
        "        print(hashlib.sha256(samples.tobytes()).hexdigest(), speak.words)\n"
        "assert bool(speak.phones) == bool(int(sys.argv[1]))\n"
    )
    without, with_events = (
        subprocess.check_output([sys.executable, "-c", code, told]) for told in "01"
    )
    assert without == with_events and len(without.splitlines()) == 9


def test_silence_before_a_phone_is_its_own() -> None:
    # A vowel, the closure of a stop from 0.3 s on and its release at 0.4 s; a pause; a nasal.
    speech = np.ones(1000, np.float32)
    speech[300:400] = speech[500:700] = 0.0
    events = [("a", 0.1), ("t", 0.4), ("", 0.45), ("n", 0.7), ("e", 0.9), ("", 0.99)]
    placed = place_phones([PhoneEvent(*event) for event in events], speech, 1000)
    found = [(each.word, round(each.start, 3), round(each.end, 3)) for each in placed]
    assert found == [("a", 0.1, 0.3), ("t", 0.3, 0.45), ("n", 0.7, 0.9), ("e", 0.9, 0.99)]
    # What is silent as a whole keeps half of its time; what lies behind the sound is none.
    speech[:] = 0.0
    speech[0] = speech[399] = 1.0
    placed = place_phones([PhoneEvent("f", 0.1), PhoneEvent("t", 0.3)], speech[:400], 1000)
    assert [round(each.start, 3) for each in placed] == [0.1, 0.2]
    assert place_phones([PhoneEvent("f", 0.5)], speech[:400], 1000) == ()
    assert place_phones([PhoneEvent("f", 0.2), PhoneEvent("t", 0.1)], speech, 1000) == ()


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
    assert len(data.utterances) == 2 == len(data.timings) == len(data.phones)
    for utt in data.utterances:
        words = data.timings[utt.utt_id]
        assert " ".join(word.word for word in words) == utt.text
        first, last = round(words[0].start * 16000), round(words[-1].end * 16000)
        phones = data.phones[utt.utt_id]
        assert phones[0].start == pytest.approx(words[0].start, abs=0.08)
        assert phones[-1].end == pytest.approx(words[-1].end, abs=0.02)
        power = np.square(load_audio(utt.audio))
        silence = np.concatenate([power[: max(0, first - 320)], power[last + 320 :]])
        assert 0 <= first < last <= len(power) and power[first:last].mean() > 2 * silence.mean()


def test_a_corpus_of_before_gets_its_times_and_keeps_its_audio(
    corpora: Path, tmp_path: Path
) -> None:
    shutil.copytree(corpora / "commonvoice", tmp_path / "cv")
    folder = next((tmp_path / "cv").rglob(MANIFEST)).parent
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.mp3")}
    expected = {name: (folder / name).read_text() for name in (ALIGNMENTS, PHONE_ALIGNMENTS)}
    (folder / PHONE_ALIGNMENTS).unlink()
    parameters = json.loads((folder / MANIFEST).read_text())["parameters"]
    options = MiniCorpusOptions(
        **{key: value for key, value in parameters.items() if key not in ("version", "text")}
    )
    make_mini_corpus(options, tmp_path / "cv", num_jobs=1)
    assert {name: (folder / name).read_text() for name in expected} == expected
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
