"""Recordings: blocks against whole files, windows while reading, streams, what cannot be read."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch

from espnet_moe.data.audio import AudioError, load_audio
from espnet_moe.decoding.parts import whole_or_windows
from espnet_moe.errors import UserError
from espnet_moe.inference.recordings import cut, read_blocks, samples_of
from mixtures import tones


@pytest.mark.parametrize(
    ("name", "rate", "channels"),
    [
        ("a.wav", 16000, 1),
        ("a.flac", 44100, 2),
        ("a.ogg", 22050, 1),
        ("a.mp3", 48000, 2),
        ("a.m4a", 44100, 2),
        ("a.wav", 8000, 3),
    ],
)
def test_blocks_are_the_whole_file(tmp_path, name, rate, channels):
    path, draw = tmp_path / name, np.random.default_rng(3)
    x = np.repeat(tones(23, 1), 3)[: 23 * rate, None]
    x = 0.5 * x + 0.01 * draw.standard_normal((len(x), channels))
    if name.endswith("m4a"):
        write_m4a(path, x.astype(np.float32), rate)
    else:
        soundfile.write(path, x, rate)
    blocks = list(read_blocks(path))
    assert len(blocks) > 1 and max(map(len, blocks)) <= 11 * 16000
    np.testing.assert_allclose(np.concatenate(blocks), load_audio(path), atol=1e-6)


def write_m4a(path, x, rate):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="stereo")
        for a in range(0, len(x) - 1023, 1024):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(x[a : a + 1024].T), format="fltp", layout="stereo"
            )
            frame.sample_rate, frame.pts = rate, a
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("seconds", [0.2, 5.0, 6.0, 6.01, 6.4, 7.0, 12.3, 61.7])
def test_windows_while_reading_are_those_of_the_whole(seconds):
    x, draw = tones(seconds, 5), np.random.default_rng(0)
    want = [(p.start, p.start + len(p.speech)) for p in whole_or_windows([x], [""], 6.0, 0.5)]
    for _ in range(5):
        ends = np.sort(draw.integers(0, len(x), 9))
        found = list(cut(np.split(x, ends), 6.0, 0.5))
        assert [(start, start + len(part)) for start, part in found] == want
        np.testing.assert_array_equal(np.concatenate([part for _, part in found]), x)


def test_memory_does_not_grow_with_the_file(tmp_path):
    """15 minutes are 58 MB of samples; a window and a block are 4."""
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 44100, 1) as file:
        for i in range(15):
            file.write(np.full(60 * 44100, 0.01 * (i % 2), np.float32))
    tracemalloc.start()
    try:
        samples = sum(len(x) for _, x in cut(read_blocks(tmp_path / "long.flac"), 30.0, 0.5))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert samples == 15 * 60 * 16000 and peak < 20e6


def test_long_files_and_streams(make_model, tmp_path):
    """A long file as in one call; a stream of long and short files, in batches across them."""
    model, files, want = make_model(), [], []
    for i, seconds in enumerate((1.2, 75.0, 0.5, 31.0, 2.0)):
        files.append(tmp_path / f"{i}.wav")
        soundfile.write(files[-1], tones(seconds, i), 16000)
        want.append(model(files[-1]))
    seconds = []
    found = list(model.stream(iter(files), progress=seconds.append))
    assert [path for path, _ in found] == files
    for (_, got), expected in zip(found, want):
        assert (got.text, got.tokens) == (expected.text, expected.tokens)
        assert [(s.start, s.end) for s in got.segments] == [
            (s.start, s.end) for s in expected.segments
        ]
    # A window is decoded, and decided, as if it stood alone.
    x, segments = load_audio(files[1]), found[1][1].segments
    assert len(segments) >= 3
    for s in segments:
        own = model(x[round(s.start * 16000) : round(s.end * 16000)])
        assert (own.text, own.language) == (s.text, s.language)
    assert sum(seconds) == pytest.approx(109.7)
    alone = model.transcribe_long(files[1])
    assert (alone.tokens, alone.language) == (want[1].tokens, want[1].language)
    assert alone.gates == pytest.approx(want[1].gates, abs=1e-3)


def test_a_stream_leaves_bad_files_out(make_model, tmp_path):
    model, files = make_model(), [tmp_path / f"{name}.wav" for name in ("a", "b", "c", "d", "e")]
    for path in (files[0], files[4]):
        soundfile.write(path, tones(0.6, 1), 16000)
    files[1].write_bytes(b"no audio at all")
    # Damaged after windows of it have been taken: a flac whose tail is noise.
    soundfile.write(tmp_path / "c.flac", tones(90, 2), 16000)
    whole = (tmp_path / "c.flac").read_bytes()
    files[2] = tmp_path / "cut.flac"
    files[2].write_bytes(whole[: len(whole) * 9 // 10])
    errors = []
    found = list(model.stream(files, on_error=lambda path, error: errors.append(path)))
    assert [path for path, _ in found] == [files[0], files[4]]
    assert errors == files[1:4]
    with pytest.raises(AudioError, match=r"b\.wav"):
        list(model.stream(files))


@pytest.mark.parametrize(
    ("array", "rate", "message"),
    [
        (np.zeros((2, 100), np.float32), None, r"shape \(2, 100\).*give one channel"),
        (np.zeros(0, np.float32), None, "no samples"),
        (np.array([0.0, np.nan]), None, "NaN or infinite"),
        (np.zeros(10, np.uint8), None, "floats in .* not uint8"),
        (np.array(["a"]), None, "floats in"),
        (np.zeros(10), 0, "sampling_rate is in Hz and above 0, not 0"),
    ],
)
def test_arrays_that_are_no_recordings(array, rate, message):
    with pytest.raises(AudioError, match=message):
        samples_of(array, rate)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.m4a").write_text("no audio")
    soundfile.write(tmp_path / "silent.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan), 16000, subtype="FLOAT")
    for name in ("empty.wav", "text.m4a", "silent.wav", "nan.wav", "nowhere.wav"):
        with pytest.raises(UserError, match=name):
            list(read_blocks(tmp_path / name))


def test_a_few_samples_are_transcribed(make_model):
    model = make_model()
    for count in (1, 100, 399):
        assert model(np.full(count, 0.1, np.float32)).timings.audio == count / 16000


def test_importing_costs_nothing():
    script = (
        "import time; t = time.perf_counter(); import espnet_moe; t = time.perf_counter() - t\n"
        "assert t < 0.3, t\n"
        "assert 'Speech2Text' in dir(espnet_moe)\n"
        "try:\n    espnet_moe.nothing\nexcept AttributeError as error:\n    print(error)\n"
        "from espnet_moe import Result, Speech2Text\n"
        "assert espnet_moe.Speech2Text is Speech2Text"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "has no attribute 'nothing'" in done.stdout


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_tensors_of_half_precision(kind):
    x = torch.linspace(-1, 1, 101, dtype=kind)
    np.testing.assert_array_equal(samples_of(x), x.float().numpy())
