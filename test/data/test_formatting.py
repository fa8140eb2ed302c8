"""Formatting: bad files, killed and repeated runs, and what is written."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_moe.bin import format_audio
from espnet_moe.data import format_workers
from espnet_moe.data.audio import AudioError
from espnet_moe.data.datadir import load_datadir, validate_datadir, write_datadir
from espnet_moe.data.formatting import FormatOptionError, FormatOptions, format_datadir
from espnet_moe.data.normalize import LanguageError
from espnet_moe.data.utterance import Utterance

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, tone: Callable[..., np.ndarray], write_audio: Callable[..., Path]) -> Make:
    """Make a data directory of tones, a second each; ``texts`` and ``seconds`` by name."""

    def build(
        name: str,
        texts: dict[str, str],
        seconds: dict[str, float] | None = None,
        language: str = "it",
    ) -> Path:
        utterances = []
        for number, (utt_id, text) in enumerate(texts.items()):
            suffix, rate = [("wav", 16000), ("mp3", 48000), ("flac", 22050), ("m4a", 44100)][
                number % 4
            ]
            length = (seconds or {}).get(utt_id, 1.0)
            audio = write_audio(tmp_path / "audio" / f"{utt_id}.{suffix}", tone(length, rate), rate)
            speaker = utt_id.split("-")[0]
            utterances.append(Utterance(utt_id, str(audio), text, speaker, language, "train"))
        write_datadir(tmp_path / "data" / name, utterances)
        return tmp_path / "data" / name

    return build


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded, in order."""
    names: list[str] = []
    decode = format_workers.load_audio

    def counting(path: str) -> np.ndarray:
        names.append(Path(path).stem)
        return decode(path)

    monkeypatch.setattr(format_workers, "load_audio", counting)
    return names


def ids(path: Path) -> list[str]:
    return [utt.utt_id for utt in load_datadir(path).utterances]


def test_formatted_set_is_valid_and_whole(make: Make, tmp_path: Path) -> None:
    source = make(
        "train_it", {"a-1": "Ciao, mondo!", "a-2": "L’alba", "b-1": "è qui", "c-1": "Sì."}
    )
    summary = format_datadir(source, tmp_path / "raw/train_it")
    validate_datadir(tmp_path / "raw/train_it", check_audio=True)
    data = load_datadir(tmp_path / "raw/train_it")
    assert [utt.text for utt in data.utterances] == ["ciao mondo", "l'alba", "è qui", "sì"]
    assert data.raw_text["a-1"] == "Ciao, mondo!"
    assert (summary.kept, summary.formatted, summary.skipped) == (4, 4, {})
    for utt in data.utterances:
        info = soundfile.info(utt.audio)
        assert (info.samplerate, info.channels, info.format) == (16000, 1, "FLAC")
        assert info.frames == data.num_samples[utt.utt_id]
        assert utt.duration == pytest.approx(1.0, abs=0.1)
    assert not (tmp_path / "raw/train_it/skipped.tsv").exists()
    assert not list((tmp_path / "raw").rglob("*.tmp"))


def test_silence_is_trimmed_unless_told(
    make: Make, tmp_path: Path, tone: Callable[..., np.ndarray], write_audio: Callable[..., Path]
) -> None:
    source = make("train_it", {"a-1": "uno"})
    silence = np.zeros((16000, 1), np.float32)
    sound = np.concatenate([silence, tone(1.0), silence])
    write_audio(tmp_path / "audio/a-1.wav", sound, 16000)
    format_datadir(source, tmp_path / "trimmed")
    format_datadir(source, tmp_path / "whole", FormatOptions(trim=False))
    assert load_datadir(tmp_path / "trimmed").num_samples["a-1"] == pytest.approx(19200, abs=500)
    assert load_datadir(tmp_path / "whole").num_samples["a-1"] == 48000


def spoil(tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    (audio / "a-1.wav").unlink()
    (audio / "a-2.mp3").write_bytes(b"")
    content = (audio / "a-3.flac").read_bytes()
    (audio / "a-3.flac").write_bytes(content[: len(content) // 2])
    (audio / "a-4.m4a").write_bytes(b"no audio at all" * 100)
    samples = np.full(16000, np.nan, np.float32)
    soundfile.write(audio / "b-1.wav", samples, 16000, subtype="FLOAT")


TEXTS = (
    {f"a-{n}": "uno" for n in range(1, 5)} | {f"b-{n}": "due" for n in range(1, 4)} | {"c-1": "?!"}
)
SECONDS = {"b-2": 31.0, "b-3": 0.05}
REASONS = {
    "a-1": "does not exist",
    "a-2": "is empty (0 bytes)",
    "a-3": "truncated",
    "a-4": "cannot be decoded",
    "b-1": "NaN",
    "b-2": "longer than 30 s",
    "b-3": "shorter than 0.1 s",
    "c-1": "text is empty after normalisation",
}


def test_bad_files_of_a_training_set_are_skipped_and_listed(make: Make, tmp_path: Path) -> None:
    source = make("train_it", TEXTS | {"d-1": "buono"}, SECONDS)
    spoil(tmp_path)
    summary = format_datadir(source, tmp_path / "raw/train_it")
    assert ids(tmp_path / "raw/train_it") == ["d-1"]
    rows = (tmp_path / "raw/train_it/skipped.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows] == list(REASONS)
    for row, reason in zip(rows, REASONS.values(), strict=True):
        assert reason in row
    assert (summary.kept, len(summary.skipped)) == (1, len(REASONS))


@pytest.mark.parametrize("name", ["test_it", "commonvoice_it_test"])
def test_bad_files_of_a_test_set_are_an_error_that_names_all(
    name: str, make: Make, tmp_path: Path
) -> None:
    source = make(name, TEXTS | {"d-1": "buono"}, SECONDS)
    spoil(tmp_path)
    with pytest.raises(
        AudioError, match="8 of 9 utterances of test set.*--allow_bad_audio true"
    ) as e:
        format_datadir(source, tmp_path / "raw" / name)
    for key, reason in REASONS.items():
        assert any(key in line and reason in line for line in str(e.value).splitlines()), key
    assert not (tmp_path / "raw" / name / "wav.scp").exists()
    format_datadir(source, tmp_path / "raw" / name, FormatOptions(allow_bad_audio=True))
    assert ids(tmp_path / "raw" / name) == ["d-1"]
    assert set(load_datadir(tmp_path / "raw" / name).skipped) == set(REASONS)


def test_a_long_list_of_bad_files_is_cut(make: Make, tmp_path: Path) -> None:
    source = make("test_it", {f"a-{n:02}": "uno" for n in range(25)}, dict.fromkeys([]))
    for path in (tmp_path / "audio").iterdir():
        path.write_bytes(b"")
    with pytest.raises(AudioError) as caught:
        format_datadir(source, tmp_path / "raw/test_it")
    assert str(caught.value).count("is empty") == 20
    assert "… and 5 more" in str(caught.value)


def test_a_set_of_which_nothing_is_left_is_an_error(make: Make, tmp_path: Path) -> None:
    source = make("train_it", {"a-1": "..."})
    with pytest.raises(AudioError, match="no utterance of .* is left"):
        format_datadir(source, tmp_path / "raw")


def test_losses_of_the_stage_before_stay_listed(make: Make, tmp_path: Path) -> None:
    source = make("train_it", {"a-1": "uno"})
    (source / "skipped.tsv").write_text("z-1\tgone\n")
    assert format_datadir(source, tmp_path / "raw").skipped == {"z-1": "gone"}
    assert (tmp_path / "raw/skipped.tsv").read_text() == "z-1\tgone\n"


def test_unknown_language_is_named(make: Make, tmp_path: Path) -> None:
    source = make("train_xx", {"a-1": "uno"}, language="xx")
    with pytest.raises(LanguageError, match="'xx'; supported .* en, hi, it, pa, te"):
        format_datadir(source, tmp_path / "raw")


def test_finished_files_are_not_done_again(make: Make, tmp_path: Path, decoded: list[str]) -> None:
    source = make("train_it", {"a-1": "uno", "a-2": "due", "b-1": "tre"})
    format_datadir(source, tmp_path / "raw")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "raw/data").rglob("*.flac")}
    first = load_datadir(tmp_path / "raw")
    decoded.clear()
    assert format_datadir(source, tmp_path / "raw").formatted == 0
    assert decoded == []
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert load_datadir(tmp_path / "raw") == first


def test_changed_input_lost_output_and_other_options_are_done_again(
    make: Make, tmp_path: Path, decoded: list[str]
) -> None:
    source = make("train_it", {"a-1": "uno", "a-2": "due", "b-1": "tre"})
    format_datadir(source, tmp_path / "raw")
    decoded.clear()
    os.utime(tmp_path / "audio/a-1.wav", (1, 1))
    output = next((tmp_path / "raw/data").rglob("a-2.flac"))
    output.write_bytes(output.read_bytes()[:-1])
    format_datadir(source, tmp_path / "raw")
    assert decoded == ["a-1", "a-2"]
    decoded.clear()
    format_datadir(source, tmp_path / "raw", FormatOptions(trim=False))
    assert decoded == ["a-1", "a-2", "b-1"]
    decoded.clear()
    # A limit is no reason to decode again, except for what it excludes.
    with pytest.raises(AudioError, match="no utterance"):
        format_datadir(source, tmp_path / "raw", FormatOptions(trim=False, max_wav_duration=0.5))
    decoded.clear()
    format_datadir(source, tmp_path / "raw", FormatOptions(trim=False, max_wav_duration=20))
    assert len(decoded) <= 3


def test_killed_run_goes_on_where_it_was(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    source = make("train_it", {f"a-{n}": "uno" for n in range(6)})
    write = format_workers.write_bytes
    written = []

    def dying(path: Path, content: bytes) -> None:
        if len(written) == 3:
            (path.parent / f".{path.name}.99.tmp").write_bytes(content[:100])  # as a kill leaves it
            raise KeyboardInterrupt
        written.append(path.stem)
        write(path, content)

    monkeypatch.setattr(format_workers, "write_bytes", dying)
    with pytest.raises(KeyboardInterrupt):
        format_datadir(source, tmp_path / "raw")
    assert not (tmp_path / "raw/wav.scp").exists()
    # A kill in the middle of a journal line.
    (journal,) = (tmp_path / "raw/data/.journal").glob("[0-9]*.jsonl")
    journal.write_text(journal.read_text() + '{"utt_id": "a-')
    monkeypatch.setattr(format_workers, "write_bytes", write)
    decoded.clear()
    assert format_datadir(source, tmp_path / "raw").formatted == 3
    assert decoded == ["a-3", "a-4", "a-5"]
    validate_datadir(tmp_path / "raw", check_audio=True)
    assert not list((tmp_path / "raw").rglob("*.tmp"))


def test_killed_command_line_leaves_no_process_and_goes_on(make: Make, tmp_path: Path) -> None:
    source = make("train_it", {f"a-{n:02}": "uno" for n in range(40)})
    command = [sys.executable, "-m", "espnet_moe.bin.format_audio", "--nj", "2"]
    command += ["--in", str(source), "--out", str(tmp_path / "raw")]
    # The processes hold the pipe open as long as they live.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as running:
        while running.poll() is None and not list((tmp_path / "raw").rglob("*.flac")):
            pass
        running.kill()
        running.communicate(timeout=30)
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "raw").rglob("a-*.flac")}
    assert done
    summary = format_datadir(source, tmp_path / "raw")
    assert summary.kept == 40
    # Files of which the journal's line was not written yet, one a process, are done again.
    kept = [path for path, time in done.items() if path.stat().st_mtime_ns == time]
    assert len(done) - 2 <= len(kept) <= 40 - summary.formatted + 2


def test_full_disk_stops_with_a_message_and_keeps_what_is_finished(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[str]
) -> None:
    source = make("train_it", {"a-1": "uno", "a-2": "due"})
    write = format_workers.write_bytes

    def full(path: Path, content: bytes) -> None:
        if path.stem == "a-2":
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(format_workers, "write_bytes", full)
    with pytest.raises(AudioError, match="cannot write .*a-2.flac: No space left on device"):
        format_datadir(source, tmp_path / "raw")
    monkeypatch.setattr(format_workers, "write_bytes", write)
    decoded.clear()
    format_datadir(source, tmp_path / "raw")
    assert decoded == ["a-2"]


def test_processes_give_the_same_as_one(make: Make, tmp_path: Path) -> None:
    source = make("train_it", TEXTS | {f"d-{n}": "tre" for n in range(3)}, SECONDS)
    spoil(tmp_path)
    one = format_datadir(source, tmp_path / "one")
    two = format_datadir(source, tmp_path / "two", FormatOptions(num_jobs=2))
    assert one == two
    assert load_datadir(tmp_path / "one").num_samples == load_datadir(tmp_path / "two").num_samples
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "data").rglob("*.flac")}
        for name in ("one", "two")
    ]
    assert contents[0] == contents[1] and len(contents[0]) == 3


def crash_on_poison(
    jobs: list[format_workers.Job], journal: Path
) -> dict[str, format_workers.Outcome]:
    """Stand in for a decoder that takes its process with it (module level: sent to processes)."""
    load = format_workers.load_audio

    def poisoned(path: str) -> np.ndarray:
        if "poison" in path:
            os.kill(os.getpid(), 9)
        return load(path)

    format_workers.load_audio = poisoned
    return _format_chunk(jobs, journal)


_format_chunk = format_workers.format_chunk


def test_a_decoder_that_crashes_its_process_costs_one_file(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format_workers, "format_chunk", crash_on_poison)
    monkeypatch.setattr(format_workers, "_CHUNK", 2)
    # Processes find the stand-in by this module's name, which the test runner does not register.
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(crash_on_poison, "__module__", "test_formatting")
    import test_formatting  # type: ignore[import-not-found]

    monkeypatch.setattr(format_workers, "format_chunk", test_formatting.crash_on_poison)
    source = make("train_it", {"a-1": "uno", "a-poison": "due", "b-1": "tre", "b-2": "uno"})
    format_datadir(source, tmp_path / "raw", FormatOptions(num_jobs=2))
    assert ids(tmp_path / "raw") == ["a-1", "b-1", "b-2"]
    skipped = load_datadir(tmp_path / "raw").skipped
    assert list(skipped) == ["a-poison"] and "crashed" in skipped["a-poison"]


def test_names_that_are_no_file_names(
    tmp_path: Path, tone: Callable[..., np.ndarray], write_audio: Callable[..., Path]
) -> None:
    audio = str(write_audio(tmp_path / "x.wav", tone(0.5), 16000))
    names = ["a-../../etc", "a-.", "a-x/y", "a-x:y", "a-" + "z" * 300, "a-é", "é-é", "a-x_y"]
    utterances = [Utterance(n, audio, "uno", n.split("-")[0], "it", "train") for n in names]
    write_datadir(tmp_path / "data", utterances)
    assert format_datadir(tmp_path / "data", tmp_path / "raw").kept == len(names)
    data = load_datadir(tmp_path / "raw")
    paths = [Path(utt.audio) for utt in data.utterances]
    assert len(set(paths)) == len(names)
    for path in paths:
        assert path.parent.parent == tmp_path / "raw/data" and path.name.isascii()


def test_audio_beyond_full_scale_is_turned_down(make: Make, tmp_path: Path) -> None:
    source = make("train_it", {"a-1": "uno"})
    loud = 3 * np.sin(np.arange(16000) * 0.1).astype(np.float32)
    soundfile.write(tmp_path / "audio/a-1.wav", loud, 16000, subtype="FLOAT")
    format_datadir(source, tmp_path / "raw", FormatOptions(audio_format="wav"))
    (path,) = (tmp_path / "raw/data").rglob("*.wav")
    samples, _ = soundfile.read(path)
    np.testing.assert_allclose(samples, loud / np.abs(loud).max(), atol=1e-3)


def test_options_that_do_not_go_together_are_all_named() -> None:
    with pytest.raises(FormatOptionError) as caught:
        FormatOptions(audio_format="mp3", min_wav_duration=5, max_wav_duration=1, num_jobs=0)
    for part in (
        "'mp3', but legal are flac, wav",
        "must be below max_wav_duration (1)",
        "num_jobs is 0",
    ):
        assert part in str(caught.value)


def test_command_line(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [
        str(make("train_it", {"a-1": "uno"})),
        str(make("dev_it", {"b-1": "due", "b-2": "?"})),
    ]
    out = tmp_path / "raw"
    format_audio.main(["--in", *sources, "--out", str(out), "--trim", "false", "--nj", "1"])
    assert ids(out / "train_it") == ["a-1"] and ids(out / "dev_it") == ["b-1"]
    assert "dev_it: 1 utterances, 0.00 h, 1 skipped" in capsys.readouterr().out
    with pytest.raises(FormatOptionError, match="names 2 folders for 1"):
        format_audio.main(["--in", sources[0], "--out", "x", "y"])


def test_journal_is_one_file_afterwards(make: Make, tmp_path: Path) -> None:
    source = make("train_it", {"a-1": "uno"})
    format_datadir(source, tmp_path / "raw")
    (journal,) = (tmp_path / "raw/data/.journal").iterdir()
    assert json.loads(journal.read_text())["utt_id"] == "a-1"


def plain(tmp_path: Path, tone: Callable[..., np.ndarray], rate: int = 16000) -> Path:
    """A data directory of one flac of 16 bits, without silence."""
    audio = tmp_path / "corpus" / "a.flac"
    audio.parent.mkdir(exist_ok=True)
    soundfile.write(audio, tone(1.0, rate), rate, subtype="PCM_16")
    write_datadir(tmp_path / "set", [Utterance("s-a", str(audio), "ciao", "s", "it", "train")])
    return audio


def test_a_file_that_is_as_it_should_be_stays_where_it_is(tmp_path, tone):
    audio = plain(tmp_path, tone)
    for _ in range(2):  # the second time from the journal
        format_datadir(tmp_path / "set", tmp_path / "dump")
        (utterance,) = load_datadir(tmp_path / "dump").utterances
        assert utterance.audio == str(audio)
        assert not list((tmp_path / "dump/data").rglob("*.flac"))
    validate_datadir(tmp_path / "dump", check_audio=True)


@pytest.mark.parametrize("change", ["rate", "format", "silence", "bits"])
def test_a_file_that_is_not_as_it_should_be_is_written(tmp_path, tone, change):
    audio = plain(tmp_path, tone, rate=22050 if change == "rate" else 16000)
    if change == "silence":
        sound = tone(1.0, 16000)
        soundfile.write(audio, np.concatenate([sound, 0 * sound]), 16000, subtype="PCM_16")
    if change == "bits":
        soundfile.write(audio, tone(1.0, 16000), 16000, subtype="PCM_24")
    options = FormatOptions(audio_format="wav" if change == "format" else "flac")
    format_datadir(tmp_path / "set", tmp_path / "dump", options)
    (utterance,) = load_datadir(tmp_path / "dump").utterances
    assert utterance.audio.startswith(f"{tmp_path}/dump/data/")
    written = soundfile.info(utterance.audio)
    assert (written.samplerate, written.subtype) == (16000, "PCM_16")


def test_a_file_of_another_format_than_its_name_says(tmp_path, tone, write_audio):
    audio = plain(tmp_path, tone)
    write_audio(tmp_path / "x.m4a", tone(1.0, 16000), 16000).rename(audio)
    assert format_datadir(tmp_path / "set", tmp_path / "dump").kept == 1
    (utterance,) = load_datadir(tmp_path / "dump").utterances
    assert utterance.audio.startswith(f"{tmp_path}/dump/data/")


def test_a_source_that_changed_is_looked_at_again(tmp_path, tone):
    audio = plain(tmp_path, tone)
    format_datadir(tmp_path / "set", tmp_path / "dump")
    soundfile.write(audio, tone(2.0, 16000), 16000, subtype="PCM_16")
    format_datadir(tmp_path / "set", tmp_path / "dump")
    assert load_datadir(tmp_path / "dump").num_samples == {"s-a": 32000}
