"""Recordings as samples at 16 kHz: arrays, files, and files of any length in windows."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
import torch

# The reader of whole files; what it knows of damaged ones holds for blocks of them.
from espnet_moe.data import audio as whole
from espnet_moe.data.audio import SAMPLE_RATE, AudioError
from espnet_moe.data.utterance import Seconds
from espnet_moe.decoding.windows import windows
from espnet_moe.errors import UserError

Samples = npt.NDArray[np.float32]

_BLOCK: Seconds = 10.0  # read at a time
_SHORTEST: Seconds = 1.0  # what windows() leaves for the last window
_SMOOTHING: Seconds = 0.1  # what windows() looks ahead of a cut


def samples_of(audio: Any, sampling_rate: int | None = None) -> Samples:
    """An array as samples.

    Args:
        audio: ``(samples,)``: numpy or torch, floats in [-1, 1] or whole numbers of 16 or 32 bit.
        sampling_rate: Its rate in Hz; 16000 if ``None``.

    Returns:
        ``(samples,)`` float32 at 16 kHz.

    Raises:
        AudioError: For an array that is empty, not one-dimensional, or holds NaN or infinity.
    """
    if isinstance(audio, torch.Tensor):
        audio = audio.detach().cpu()
        audio = audio.float() if audio.is_floating_point() else audio  # numpy knows no bfloat16
    array = np.asarray(audio)
    if array.ndim != 1:
        raise AudioError(
            f"an array of the shape {array.shape} is no recording: give one channel, (samples,), "
            "e.g. audio.mean(axis=1) of (samples, channels)"
        )
    if array.size == 0:
        raise AudioError("the array holds no samples")
    if array.dtype in (np.int16, np.int32):
        array = array.astype(np.float64) / (np.iinfo(array.dtype).max + 1)
    elif not np.issubdtype(array.dtype, np.floating):
        raise AudioError(
            f"samples are floats in [-1, 1], or whole numbers of 16 or 32 bit, not {array.dtype}"
        )
    rate = SAMPLE_RATE if sampling_rate is None else sampling_rate
    if rate < 1:
        raise AudioError(f"sampling_rate is in Hz and above 0, not {rate}")
    x = array.astype(np.float32)
    if not np.isfinite(x).all():
        raise AudioError("the array holds NaN or infinite samples")
    if rate != SAMPLE_RATE:
        x = soxr.resample(x, rate, SAMPLE_RATE, quality="HQ")
        if x.size == 0:
            raise AudioError(f"the array is too short to resample ({array.size} samples)")
    return np.ascontiguousarray(x)


def read_blocks(path: str | Path) -> Iterator[Samples]:
    """Decode a file a few seconds at a time; what :func:`load_audio` does, in bounded memory.

    Yields:
        ``(samples,)`` float32 at 16 kHz; one behind the other they are the file's samples.

    Raises:
        AudioError: For what :func:`load_audio` refuses; perhaps after some blocks.
    """
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path} does not exist")
    if path.stat().st_size == 0:
        raise AudioError(f"{path} is empty (0 bytes); fetch it again")
    resampler, old_rate, count = None, 0, 0
    for block, rate in _decoded(path):
        if old_rate not in (0, rate):
            raise AudioError(f"{path} changes its sampling rate on the way; convert it to wav")
        old_rate = rate
        if not np.isfinite(block).all():
            raise AudioError(f"{path} holds NaN or infinite samples; make it again from its source")
        if rate != SAMPLE_RATE:
            resampler = resampler or soxr.ResampleStream(rate, SAMPLE_RATE, 1, quality="HQ")
            block = resampler.resample_chunk(block)
        count += len(block)
        if len(block):
            yield block
    if resampler is not None:
        block = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        count += len(block)
        if len(block):
            yield block
    if count == 0:
        raise AudioError(f"{path} decodes to no samples; fetch it again")


def _decoded(path: Path) -> Iterator[tuple[Samples, int]]:
    """Blocks ``(samples,)`` of some seconds, channels averaged, with their rate."""
    if path.suffix.lower() in whole.FFMPEG_ONLY:
        yield from _decoded_by_ffmpeg(path)
        return
    try:
        stream = soundfile.SoundFile(path)
    except soundfile.LibsndfileError:
        yield from _decoded_by_ffmpeg(path)
        return
    with stream:
        if stream.format == "MP3" and not whole.mp3_states_length(path):
            yield from _decoded_by_ffmpeg(path)
            return
        whole.check_whole(path, stream.format)
        size, read = int(_BLOCK * stream.samplerate), 0
        try:
            while len(block := stream.read(size, dtype="float32", always_2d=True)):
                read += len(block)
                yield _mono(block), stream.samplerate
        except soundfile.LibsndfileError as error:
            raise AudioError(
                f"{path} is truncated or damaged: {error.error_string.rstrip('.')}; fetch it again"
            ) from None
        if stream.frames < 1 << 40:  # more means "unknown"
            rate = stream.samplerate
            whole.check_duration(path, read / rate, stream.frames / rate)


def _decoded_by_ffmpeg(path: Path) -> Iterator[tuple[Samples, int]]:
    import av

    with whole.ffmpeg_errors(path), av.open(str(path)) as container:
        if not container.streams.audio:
            raise AudioError(f"{path} holds no audio stream; give an audio file")
        stream = container.streams.audio[0]
        converter, read, rate = av.AudioResampler(format="fltp"), 0, 0
        held: list[Samples] = []  # a frame is some milliseconds: joined, or copying them would cost
        for frame in container.decode(stream):
            if held and rate != frame.sample_rate:
                yield np.concatenate(held), rate
                held = []
            rate = frame.sample_rate
            for part in converter.resample(frame):
                held.append(_mono(part.to_ndarray().T.astype(np.float32, copy=False)))
                read += len(held[-1])
            if sum(map(len, held)) >= _BLOCK * rate:
                yield np.concatenate(held), rate
                held = []
        if held:
            yield np.concatenate(held), rate
        states_duration = any(name in container.format.name for name in whole.STATES_DURATION)
        if rate and stream.duration and stream.time_base and states_duration:
            whole.check_duration(path, read / rate, float(stream.duration * stream.time_base))


def _mono(block: npt.NDArray[np.float32]) -> Samples:
    """``(samples, channels)`` → ``(samples,)``."""
    return block.mean(axis=1, dtype=np.float32) if block.shape[1] > 1 else block[:, 0]


def cut(
    blocks: Iterable[Samples], longest: Seconds, margin: Seconds
) -> Iterator[tuple[int, Samples]]:
    """Cut a recording of any length into what an encoder takes, while it is being read.

    The cuts are those that :func:`espnet_moe.decoding.parts.whole_or_windows` makes of the whole
    recording: at the quietest point of the second half of every window, so that none goes through a
    word and no overlap has to be reconciled.

    Args:
        blocks: The recording, ``(samples,)`` at 16 kHz each.
        longest: Longest window; a recording up to it stays whole.
        margin: Windows of a longer one stay under it by so much.

    Yields:
        First sample and samples of every window.
    """
    window = longest - margin
    if window <= 0:
        raise UserError(f"window_margin is {margin} s, but the backbone takes {longest} s only")
    # With so much in sight a cut does not depend on what comes.
    enough = int(max(longest, window + _SHORTEST + _SMOOTHING) * SAMPLE_RATE)
    start, held = 0, np.zeros(0, np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) > enough:
            _, end = windows(held, window, _SHORTEST)[0]
            yield start, held[:end]
            start, held = start + end, held[end:]
    if start == 0 and len(held) <= longest * SAMPLE_RATE:
        yield 0, held
        return
    for a, b in windows(held, window, _SHORTEST):
        yield start + a, held[a:b]
