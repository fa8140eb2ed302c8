"""Decoding: every format, rate and channel count against the tone that was written."""

import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from espnet_moe.data.audio import SAMPLE_RATE, AudioError, load_audio, trim_silence

RATES = (8000, 16000, 22050, 44100, 48000)
FORMATS = ("wav", "flac", "mp3", "ogg", "opus", "m4a")
OPUS_RATES = (8000, 16000, 48000)  # it has no others of these


def frequency(x: np.ndarray) -> float:
    middle = x[2000:-2000] * np.hanning(len(x) - 4000)
    return float(np.argmax(np.abs(np.fft.rfft(middle))) * SAMPLE_RATE / len(middle))


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x[2000:-2000], dtype=np.float64))))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("suffix", "rate"),
    [(f, rate) for f in FORMATS for rate in RATES if f != "opus" or rate in OPUS_RATES],
)
def test_tone_survives(
    suffix: str,
    rate: int,
    channels: int,
    tmp_path: Path,
    tone: Callable[..., np.ndarray],
    write_audio: Callable[..., Path],
) -> None:
    path = write_audio(tmp_path / f"x.{suffix}", tone(1.0, rate, channels), rate)
    samples = load_audio(path)
    assert samples.dtype == np.float32 and samples.ndim == 1 and samples.flags.c_contiguous
    # Lossy formats add their frames' padding, up to two AAC frames.
    extra = len(samples) - SAMPLE_RATE
    lossy_padding = {"m4a": 2 * 1024 * SAMPLE_RATE / rate}.get(suffix, 1)
    assert -2 <= extra <= lossy_padding + 2
    assert frequency(samples) == pytest.approx(440, abs=2)
    assert rms(samples) == pytest.approx(0.4 / np.sqrt(2), rel=0.05)


@pytest.mark.parametrize("subtype", ["PCM_24", "PCM_32", "FLOAT", "DOUBLE", "PCM_U8"])
def test_sample_formats_of_wav(
    subtype: str, tmp_path: Path, tone: Callable[..., np.ndarray], write_audio: Callable[..., Path]
) -> None:
    path = write_audio(tmp_path / "x.wav", tone(0.5), 16000, subtype)
    error = np.abs(load_audio(path) - tone(0.5)[:, 0]).max()
    assert error < (1e-2 if subtype == "PCM_U8" else 1e-6)


def test_24_bit_flac(
    tmp_path: Path, tone: Callable[..., np.ndarray], write_audio: Callable[..., Path]
) -> None:
    path = write_audio(tmp_path / "x.flac", tone(0.5), 16000, "PCM_24")
    np.testing.assert_allclose(load_audio(path), tone(0.5)[:, 0], atol=1e-6)


def test_channels_are_averaged(tmp_path: Path, write_audio: Callable[..., Path]) -> None:
    generator = np.random.default_rng(0)
    channels = generator.uniform(-0.5, 0.5, (4000, 6)).astype(np.float32)
    path = write_audio(tmp_path / "x.wav", channels, 16000, "FLOAT")
    np.testing.assert_allclose(load_audio(path), channels.mean(axis=1), atol=1e-6)


def test_mp3_of_variable_bit_rate_without_header_is_read_to_its_end(tmp_path: Path) -> None:
    # Loud, then quiet: from the first frames' bit rate libsndfile guesses a sixth of the length.
    generator = np.random.default_rng(0)
    loud = 0.3 * generator.standard_normal(48000).astype(np.float32)
    samples = np.concatenate([loud, 1e-4 * np.tile(loud, 5)])
    whole, bare = tmp_path / "whole.mp3", tmp_path / "bare.mp3"
    soundfile.write(
        whole, samples, 48000, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5
    )
    content = whole.read_bytes()
    header = content.index(b"Xing")
    bare.write_bytes(content[content.index(b"\xff\xfb", header) :])
    assert len(load_audio(bare)) / SAMPLE_RATE == pytest.approx(6.0, abs=0.1)
    assert len(load_audio(whole)) / SAMPLE_RATE == pytest.approx(6.0, abs=0.01)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "opus", "m4a"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.75])
def test_truncated_files_are_errors(
    suffix: str,
    part: float,
    tmp_path: Path,
    tone: Callable[..., np.ndarray],
    write_audio: Callable[..., Path],
) -> None:
    path = write_audio(tmp_path / f"x.{suffix}", tone(2.0), 16000)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(AudioError, match=f"x.{suffix} .*(truncated|no samples).*again"):
        load_audio(path)


def test_truncated_m4a_with_its_index_in_front(
    tmp_path: Path, tone: Callable[..., np.ndarray]
) -> None:
    # Here the container opens, and only the decoder or the length tells.
    path = tmp_path / "x.m4a"
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(2.0).T.copy(), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    assert len(load_audio(path)) / SAMPLE_RATE == pytest.approx(2.0, abs=0.15)
    content = path.read_bytes()
    for part in (0.6, 0.75, 0.9):
        path.write_bytes(content[: int(part * len(content))])
        with pytest.raises(AudioError, match="truncated"):
            load_audio(path)


def test_wav_of_a_stream_has_no_length_and_is_read(
    tmp_path: Path, tone: Callable[..., np.ndarray], write_audio: Callable[..., Path]
) -> None:
    path = write_audio(tmp_path / "x.wav", tone(0.5), 16000)
    content = bytearray(path.read_bytes())
    position = content.index(b"data")
    content[4:8] = content[position + 4 : position + 8] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert len(load_audio(path)) == 8000


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "opus", "m4a"])
def test_what_is_no_audio(suffix: str, tmp_path: Path) -> None:
    for name, content in {
        "text": b"this is a text and no audio\n" * 100,
        "noise": np.random.default_rng(0).bytes(5000),
        "page": b"<html><body>404</body></html>",
    }.items():
        path = tmp_path / f"{name}.{suffix}"
        path.write_bytes(content)
        with pytest.raises(AudioError, match=f"{name}.{suffix} "):
            load_audio(path)


def test_missing_empty_and_sampleless_files(
    tmp_path: Path, write_audio: Callable[..., Path]
) -> None:
    with pytest.raises(AudioError, match="gone.mp3 does not exist"):
        load_audio(tmp_path / "gone.mp3")
    with pytest.raises(AudioError, match="does not exist"):
        load_audio(tmp_path)
    (tmp_path / "zero.m4a").touch()
    with pytest.raises(AudioError, match="zero.m4a is empty \\(0 bytes\\)"):
        load_audio(tmp_path / "zero.m4a")
    path = write_audio(tmp_path / "none.wav", np.zeros((0, 1), np.float32), 16000)
    with pytest.raises(AudioError, match="decodes to no samples"):
        load_audio(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(
    value: float, tmp_path: Path, tone: Callable[..., np.ndarray], write_audio: Callable[..., Path]
) -> None:
    samples = tone(0.5)
    samples[1000] = value
    path = write_audio(tmp_path / "x.wav", samples, 16000, "FLOAT")
    with pytest.raises(AudioError, match="NaN or infinite"):
        load_audio(path)


def test_a_file_under_a_wrong_name_is_read(
    tmp_path: Path, tone: Callable[..., np.ndarray], write_audio: Callable[..., Path]
) -> None:
    path = write_audio(tmp_path / "x.m4a", tone(0.5), 16000)
    assert frequency(load_audio(path.rename(tmp_path / "x.wav"))) == pytest.approx(440, abs=3)


def test_trimming_leaves_the_margin_and_the_sound(tone: Callable[..., np.ndarray]) -> None:
    sound = tone(1.0)[:, 0]
    noise = 1e-4 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    trimmed = trim_silence(np.concatenate([noise, sound, noise]), threshold_db=40, margin=0.1)
    assert len(trimmed) / SAMPLE_RATE == pytest.approx(1.2, abs=0.03)
    start = int(np.argmax(np.abs(trimmed) > 0.05))
    assert start / SAMPLE_RATE == pytest.approx(0.1, abs=0.02)
    np.testing.assert_array_equal(
        trimmed[start : start + 15000], sound[np.argmax(np.abs(sound) > 0.05) :][:15000]
    )


def test_trimming_keeps_quiet_speech_and_inner_pauses(tone: Callable[..., np.ndarray]) -> None:
    quiet = tone(0.3)[:, 0] * 0.03  # 30 dB below
    pause = np.zeros(16000, np.float32)
    x = np.concatenate([quiet, pause, tone(0.3)[:, 0], pause, quiet])
    np.testing.assert_array_equal(trim_silence(x), x)


@pytest.mark.parametrize("length", [1, 100, 5000])
def test_trimming_of_silence_and_of_snippets_changes_nothing(length: int) -> None:
    silence = np.zeros(length, np.float32)
    np.testing.assert_array_equal(trim_silence(silence), silence)
    np.testing.assert_array_equal(trim_silence(silence + 0.5), silence + 0.5)
