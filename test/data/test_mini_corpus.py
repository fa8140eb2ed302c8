"""The mini corpus: files as the real corpora have them, splits apart, the same at every call."""

import csv
import itertools
import json
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from espnet_moe.bin import make_mini_corpus as command
from espnet_moe.data.audio import load_audio
from espnet_moe.data.corpora.checks import check_corpus
from espnet_moe.data.corpora.commonvoice import read_commonvoice, release_of
from espnet_moe.data.corpora.kathbath import read_kathbath
from espnet_moe.data.corpora.mls import read_mls
from espnet_moe.data.mini_commonvoice import RELEASES
from espnet_moe.data.mini_corpus import (
    LAYOUTS,
    MANIFEST,
    MiniCorpusOptions,
    layout_of,
    make_mini_corpus,
    plan,
)
from espnet_moe.data.mini_text import sentences
from espnet_moe.data.normalize import normalize
from espnet_moe.errors import UserError

SIZES = {"size": 5, "dev_size": 3, "test_size": 4}
MADE = {
    "commonvoice": MiniCorpusOptions("commonvoice", "hi", **SIZES),
    "mls": MiniCorpusOptions("mls", "it", **SIZES),
    "kathbath": MiniCorpusOptions("kathbath", "te", **SIZES),
}
PAIRS = [(layout, lang) for layout, codes in LAYOUTS.items() for lang in codes]
V11 = "client_id path sentence up_votes down_votes age gender accents locale segment"
V13 = "client_id path sentence up_votes down_votes age gender accents variant locale segment"
V17 = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents "
    "variant locale segment"
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """One small corpus of each layout, in one folder."""
    out = tmp_path_factory.mktemp("mini")
    for options in MADE.values():
        make_mini_corpus(options, out, num_jobs=1)
    return out


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def tables_of(options):
    """The text files alone, by name, with durations made up."""
    recordings = plan(options)
    layout = layout_of(options)
    durations = {clip.recording: 2.5 for clip in layout.clips(recordings)}
    return {Path(name).name: text for name, text in layout.tables(recordings, durations).items()}


def rows_of(table):
    header, *rows = (line.split("\t") for line in table.splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def texts_of(layout, lang, sections=None, **options):
    recordings = plan(MiniCorpusOptions(layout, lang, **options))
    return {r.text for r in recordings if sections is None or r.section in sections}


@pytest.mark.parametrize("release", RELEASES)
def test_common_voice_tables_of_every_release(release):
    version = int(release.split(".")[0])
    columns = (V17 if version >= 17 else V13 if version >= 13 else V11).split()
    options = MiniCorpusOptions("commonvoice", "pa", **SIZES, release=release)
    tables = tables_of(options)
    sets = ("train", "dev", "test", "validated", "invalidated", "other")
    clip_tables = {f"{name}.tsv" for name in sets}
    expected = clip_tables | {"reported.tsv"}
    expected |= {"times.txt"} if version in (14, 15) else set()
    expected |= {"clip_durations.tsv"} if version >= 15 else set()
    if version >= 17:
        expected |= {"validated_sentences.tsv", "unvalidated_sentences.tsv"}
    assert set(tables) == expected
    for name in clip_tables:
        assert tables[name].splitlines()[0].split("\t") == columns
        for row in rows_of(tables[name]):
            assert re.fullmatch("[0-9a-f]{128}", row["client_id"])
            assert re.fullmatch(r"common_voice_pa-IN_\d{8}\.mp3", row["path"])
            assert row["locale"] == "pa-IN"
            words = {"male_masculine", "female_feminine"} if version >= 17 else {"male", "female"}
            assert row["gender"] in words | {""}
    assert layout_of(options).folders == (f"cv-corpus-{release}-{RELEASES[release]}/pa-IN",)
    if version >= 15:
        assert tables["clip_durations.tsv"].splitlines()[0] == "clip\tduration[ms]"
        assert tables["clip_durations.tsv"].splitlines()[1].endswith(".mp3\t2500")


def test_clip_tables_are_unquoted_and_sentence_tables_quoted():
    tables = tables_of(MiniCorpusOptions("commonvoice", "it", size=200))
    sentences_written = [row["sentence"] for row in rows_of(tables["train.tsv"])]
    assert any(text.startswith('"') and text.endswith('"') for text in sentences_written)
    assert '\t"""' in tables["unvalidated_sentences.tsv"]
    quoted = csv.DictReader(tables["validated_sentences.tsv"].splitlines(), delimiter="\t")
    assert {row["sentence"] for row in quoted} > set(sentences_written)
    validated = {row["path"] for row in rows_of(tables["validated.tsv"])}
    splits = [{r["path"] for r in rows_of(tables[f"{s}.tsv"])} for s in ("train", "dev", "test")]
    assert validated == set.union(*splits)


@pytest.mark.parametrize("lang", LAYOUTS["commonvoice"])
def test_common_voice_text_is_written_for_readers_and_normalises_back(lang):
    options = MiniCorpusOptions("commonvoice", lang, size=200)
    spoken = {r.text for r in plan(options) if r.section == "train"}
    written = [row["sentence"] for row in rows_of(tables_of(options)["train.tsv"])]
    assert {normalize(text, lang) for text in written} == spoken
    assert not set(written) & spoken
    marks = {text.strip('"')[-1] for text in written}
    assert marks == ({"।", "?"} if lang in ("hi", "pa") else {".", "?"})
    assert any(not unicodedata.is_normalized("NFC", text) for text in written)
    if lang == "it":
        plain = [unicodedata.normalize("NFC", text).strip('"') for text in written]
        assert all(text[0].isupper() for text in plain)
        assert all(text.endswith("?") for text in plain if text.startswith(("Dove ", "Perché ")))


def test_kathbath_text_holds_some_no_break_spaces_and_mls_text_is_plain():
    options = MiniCorpusOptions("kathbath", "te", size=200)
    lines = tables_of(options)["transcription_n2w.txt"].splitlines()  # of the last section
    texts = dict(line.split("\t") for line in lines).values()
    assert any("\u00a0" in text for text in texts)
    spoken = texts_of("kathbath", "te", ["test"], size=200)
    assert {normalize(text, "te") for text in texts} == spoken
    for line in tables_of(MiniCorpusOptions("mls", "it", size=20))["transcripts.txt"].splitlines():
        assert re.fullmatch(r"\d+_\d+_\d{6}\t[a-zàèéìòù' ]+", line)


@pytest.mark.parametrize("layout,lang", PAIRS)
def test_a_corpus_has_enough_voices_and_no_speaker_or_sentence_twice(layout, lang):
    options = MiniCorpusOptions(layout, lang, size=110)
    sections = {}
    for recording in plan(options):
        sections.setdefault(recording.section, []).append(recording)
    speakers = {name: {r.voice.speaker for r in found} for name, found in sections.items()}
    dev = "valid" if layout == "kathbath" else "dev"
    assert len(speakers["train"]) >= 50
    assert len(speakers["test"] - speakers["train"] - speakers[dev]) >= 12
    assert not speakers["train"] & speakers[dev]
    everything = [r.text for found in sections.values() for r in found]
    assert len(set(everything)) == len(everything)
    if layout == "kathbath":
        assert speakers["test_known"] <= speakers["train"]
    spoken = {split: {s.texts[lang] for s in sentences(split, 4000)} for split in ("train", "test")}
    assert {r.text for r in sections["test"]} <= spoken["test"]


@pytest.mark.parametrize("layout,lang", [pair for pair in PAIRS if pair[0] != "commonvoice"])
def test_the_layouts_of_a_language_share_no_sentence(layout, lang):
    one = texts_of("commonvoice", lang, size=900)
    two = texts_of(layout, lang, size=400)
    assert not one & two
    assert not one & texts_of(layout, lang, size=400, seed=7)


def test_the_languages_of_a_layout_are_parallel():
    keys = {s.texts[lang]: s.key for s in sentences("train", 1000) for lang in s.texts}
    for layout, codes in LAYOUTS.items():
        orders = []
        for lang in codes:
            train = [r for r in plan(MiniCorpusOptions(layout, lang, 60)) if r.section == "train"]
            orders.append([keys[r.text] for r in train])
        assert all(order == orders[0] for order in orders)


def test_a_larger_corpus_begins_with_a_smaller_one():
    small = plan(MiniCorpusOptions("mls", "it", 60))
    large = plan(MiniCorpusOptions("mls", "it", 90))
    assert [r for r in large if r.section == "train"][:60] == small[:60]
    other = plan(MiniCorpusOptions("mls", "it", 60, seed=1))
    assert [r.voice for r in other] != [r.voice for r in small]


def test_files_lie_as_in_the_real_corpora(corpus):
    voice = corpus / "cv-corpus-22.0-2025-06-20/hi"
    clips = {row["path"] for row in rows_of((voice / "validated.tsv").read_text())}
    assert len(clips) == 12 and clips < {path.name for path in (voice / "clips").iterdir()}
    mls = corpus / "mls_italian"
    for split, size in {"train": 5, "dev": 3, "test": 4}.items():
        keys = [line.split("\t")[0] for line in (mls / split / "transcripts.txt").open()]
        assert len(keys) == size
        for key in keys:
            speaker, book, _ = key.split("_")
            assert (mls / split / "audio" / speaker / book / f"{key}.flac").is_file()
    handles = mls / "train/limited_supervision"
    for part in ("9hr", *(f"1hr/{n}" for n in range(6))):
        assert len((handles / part / "handles.txt").read_text().splitlines()) == 1
    assert (mls / "metainfo.txt").read_text().startswith("  SPEAKER  |   GENDER   | PARTITION  |")
    for folder, sections in {
        "kb_data_clean_m4a/telugu": {"train": 5, "valid": 3, "test_known": 4, "test": 4},
        "kb_data_noisy_m4a/telugu": {"test_known": 4, "test": 4},
    }.items():
        there = {path.name for path in (corpus / folder).iterdir() if path.is_dir()}
        assert there == set(sections)
        for section, size in sections.items():
            table = (corpus / folder / section / "transcription_n2w.txt").read_text()
            files = {line.split("\t")[0] for line in table.splitlines()}
            assert files == {p.name for p in (corpus / folder / section / "audio").iterdir()}
            assert len(files) == size
            assert all(re.fullmatch(r"844424930\d{6}-\d+-[mf]\.m4a", name) for name in files)


def test_limited_supervision_sets_are_small_and_apart():
    layout = layout_of(MiniCorpusOptions("mls", "it", 600))
    recordings = plan(MiniCorpusOptions("mls", "it", 600))
    tables = layout.tables(recordings, dict.fromkeys(recordings, 2.0))
    sets = {
        name.split("supervision/")[1]: text.split()
        for name, text in tables.items()
        if "limited_supervision" in name
    }
    assert {name: len(keys) for name, keys in sets.items()} == {
        "9hr/handles.txt": 108,
        **{f"1hr/{part}/handles.txt": 2 for part in range(6)},
    }
    assert not any(set(a) & set(b) for a, b in itertools.combinations(sets.values(), 2))


def test_the_readers_read_it_back(corpus):
    found = {
        "commonvoice": read_commonvoice(corpus, "hi"),
        "mls": read_mls(corpus, "it"),
        "kathbath": read_kathbath(corpus, "te"),
    }
    names = {"valid": "dev"}
    for layout, utterances in found.items():
        options = MADE[layout]
        planned = {
            (names.get(r.section, r.section), r.text)
            for r in plan(options)
            if r.section in ("train", "dev", "valid", "test")
        }
        assert {(u.split, normalize(u.text, u.language)) for u in utterances} == planned
        checks = check_corpus(utterances, probe_audio=True)
        assert not any(checks.speaker_overlap.values())
        assert not any(checks.sentence_overlap.values())
        assert not checks.bad_audio
        wrong = {name for name, ids in checks.findings.items() if ids}
        assert wrong <= {"not_nfc"}
        for utterance in utterances:
            seconds = len(load_audio(utterance.audio)) / 16000
            assert 0.8 < seconds < 8
            if utterance.duration is not None:
                assert seconds == pytest.approx(utterance.duration, abs=0.1)
    assert all(u.duration for layout in ("commonvoice", "mls") for u in found[layout])
    assert release_of(found["commonvoice"][0].audio) == "22.0-2025-06-20"
    known = read_kathbath(corpus, "te", ["test_known"])
    assert {u.speaker for u in known} <= {u.speaker for u in read_kathbath(corpus, "te", ["train"])}
    assert len(read_mls(corpus, "it", ["train"], handles="1hr/2")) == 1


def test_noisy_recordings_are_the_clean_ones_with_noise(corpus):
    clean = sorted((corpus / "kb_data_clean_m4a/telugu/test/audio").iterdir())
    for path in clean:
        a = load_audio(path)
        b = load_audio(corpus / "kb_data_noisy_m4a/telugu/test/audio" / path.name)
        assert len(a) == len(b)
        snr = 10 * np.log10(np.mean(a**2) / np.mean((b - a) ** 2))
        assert 3 < snr < 17


def test_audio_is_mono_at_the_corpora_rates(corpus):
    clip = next((corpus / "cv-corpus-22.0-2025-06-20/hi/clips").iterdir())
    info = soundfile.info(clip)
    assert (info.format, info.channels, info.samplerate) == ("MP3", 1, 32000)
    info = soundfile.info(next((corpus / "mls_italian/dev/audio").rglob("*.flac")))
    assert (info.format, info.channels, info.samplerate) == ("FLAC", 1, 16000)
    for path in (corpus / "kb_data_clean_m4a").rglob("*.m4a"):
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            assert stream.codec_context.name == "aac" and stream.channels == 1
            assert stream.rate in (16000, 44100)


@pytest.mark.parametrize("layout", MADE)
def test_a_second_run_gives_the_same_bytes_with_any_number_of_jobs(layout, corpus, tmp_path):
    make_mini_corpus(MADE[layout], tmp_path, num_jobs=2)
    for folder in layout_of(MADE[layout]).folders:
        assert files_of(tmp_path / folder) == files_of(corpus / folder)


def test_opus_decodes_to_the_same_samples_in_a_second_run(tmp_path):
    options = MiniCorpusOptions("mls", "it", 2, 1, 1, audio="opus")
    for name in "ab":
        make_mini_corpus(options, tmp_path / name, num_jobs=1)
    paths = sorted((tmp_path / "a").rglob("*.opus"))
    assert len(paths) == 4 and all("mls_italian_opus" in str(path) for path in paths)
    for path in paths:
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        np.testing.assert_array_equal(load_audio(path), load_audio(other))
    assert len(read_mls(tmp_path / "a", "it")) == 4


def test_an_interrupted_run_is_taken_up(corpus, tmp_path):
    folder = tmp_path / "mls_italian"
    shutil.copytree(corpus / "mls_italian", folder)
    complete = files_of(folder)
    document = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).unlink()
    marker = folder / ".mini_corpus.unfinished.json"
    marker.write_text(json.dumps({"parameters": document["parameters"]}))
    lost, *kept = sorted(folder.rglob("*.flac"))
    lost.unlink()
    (lost.parent / f".{lost.name}.1.tmp").write_bytes(b"half")
    (folder / "dev/transcripts.txt").unlink()
    before = {path: path.stat().st_mtime_ns for path in kept}
    make_mini_corpus(MADE["mls"], tmp_path, num_jobs=1)
    assert files_of(folder) == complete
    assert {path: path.stat().st_mtime_ns for path in kept} == before


def test_the_same_options_return_at_once_and_others_replace(corpus, tmp_path, monkeypatch):
    shutil.copytree(corpus / "mls_italian", tmp_path / "mls_italian")
    with monkeypatch.context() as patch:
        patch.setattr("espnet_moe.data.mini_corpus.plan", None)  # would fail
        make_mini_corpus(MADE["mls"], tmp_path)
    other = MiniCorpusOptions("mls", "it", 2, 1, 1, seed=5)
    manifest = make_mini_corpus(other, tmp_path, num_jobs=1)
    assert len(list((tmp_path / "mls_italian").rglob("*.flac"))) == 4
    assert json.loads(manifest.read_text())["sections"]["train"]["utterances"] == 2
    assert len(read_mls(tmp_path, "it")) == 4


def test_a_folder_that_is_no_mini_corpus_is_not_touched(tmp_path):
    precious = tmp_path / "mls_italian/train/transcripts.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("real")
    with pytest.raises(UserError, match="mls_italian holds something that is no mini corpus"):
        make_mini_corpus(MADE["mls"], tmp_path)
    assert precious.read_text() == "real"
    with pytest.raises(UserError, match="could not write the mini corpus"):
        make_mini_corpus(MADE["mls"], precious)


def test_wrong_options():
    with pytest.raises(UserError, match="no language 'hi' in layout 'mls'.*mls: it; kathbath: hi,"):
        MiniCorpusOptions("mls", "hi", 5)
    with pytest.raises(UserError) as caught:
        MiniCorpusOptions("kathbath", "it", 0, release="22.0", audio="mp3", test_size=-1)
    for part in ("size is 0", "test_size is -1", "no language 'it'", "legal are flac, opus"):
        assert part in str(caught.value)
    with pytest.raises(UserError, match=r"no release '9.0'; legal are 11.0, 12.0"):
        MiniCorpusOptions("commonvoice", "hi", 5, release="9.0")
    with pytest.raises(UserError, match="release 13.0 has no te; name 16.0"):
        MiniCorpusOptions("commonvoice", "te", 5, release="13.0")
    with pytest.raises(UserError, match="audio opus is there for mls only, not for kathbath"):
        MiniCorpusOptions("kathbath", "te", 5, audio="opus")
    with pytest.raises(UserError, match="releases are there for commonvoice only, not for mls"):
        MiniCorpusOptions("mls", "it", 5, release="21.0")
    with pytest.raises(UserError, match="num_jobs is 0"):
        make_mini_corpus(MADE["mls"], "nowhere", num_jobs=0)
    with pytest.raises(UserError, match="9000 sentences are needed .*'test'.* ask for fewer"):
        plan(MiniCorpusOptions("mls", "it", 5, test_size=9000))


def test_the_command_prints_what_there_is_and_names_errors(corpus, capsys):
    sizes = ["--size", "5", "--dev_size", "3", "--test_size", "4"]
    command.main(["--out", str(corpus), "--layout", "mls", "--lang", "it", *sizes])
    assert (
        "mls_italian: train 5 utterances of 5 speakers (0.00 h), dev 3" in capsys.readouterr().out
    )
    wrong = ["--out", str(corpus), "--layout", "mls", "--lang", "te", *sizes]
    run = subprocess.run(
        [sys.executable, "-m", "espnet_moe.bin.make_mini_corpus", *wrong],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert "make_mini_corpus: error: no language 'te' in layout 'mls'" in run.stderr


def test_nothing_heavy_is_imported():
    code = "import sys, espnet_moe.bin.make_mini_corpus; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
