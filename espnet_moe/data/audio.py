"""Audio files of any common format, rate and channel count as 16 kHz mono samples."""

import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from espnet_moe.data.parquet import ParquetError, read_row
from espnet_moe.data.sources import AudioSource, parse_source
from espnet_moe.data.utterance import SAMPLE_RATE, Seconds
from espnet_moe.errors import UserError

__all__ = [
    "SAMPLE_RATE",
    "AudioError",
    "is_stored_as",
    "load_audio",
    "speech_bounds",
    "trim_silence",
]

Samples = npt.NDArray[np.float32]

# What libsndfile does not read. Everything else is tried with it first, then with FFmpeg (PyAV).
FFMPEG_ONLY = frozenset({".m4a", ".mp4", ".aac", ".webm", ".m4b", ".3gp"})
# Formats in which any sample can be gone to at once, and exactly.
_SEEKABLE = frozenset({"WAV", "WAVEX", "FLAC"})
# Containers that state a stream's duration; for others FFmpeg guesses it from the bit rate.
STATES_DURATION = ("mp4", "matroska")
# A file shorter than it declares by more than both of these was cut.
_TOLERANCE = 0.05
_TOLERANCE_SECONDS: Seconds = 0.1

# A part may end this much after its recording does: times are rounded, and codecs pad.
_PART_TOLERANCE: Seconds = 0.1

_BLOCK = 1 << 20  # frames
_UNKNOWN = 1 << 40  # frames; a header with more does not know
_OGG_PAGE_HEADER = 27  # bytes before the segment table
_OGG_MAX_PAGE = _OGG_PAGE_HEADER + 255 + 255 * 255  # bytes
_MP3_HEAD = 1 << 14  # bytes that hold the header frame, after a tag of usual length
_RIFF_UNKNOWN_SIZE = (1 << 31) - (1 << 16)  # streaming writers leave a size near 2 or 4 GiB

_TRIM_HOP: Seconds = 0.010
_TRIM_FRAME_HOPS = 3


class AudioError(UserError):
    """An audio file that is missing, empty, damaged, or no audio."""


def load_audio(audio: str | Path) -> Samples:
    """Decode an audio file, a part of one, or one in a row of a parquet file.

    wav, flac, mp3, ogg and opus are read with libsndfile, m4a, mp4 and aac (and whatever
    libsndfile cannot open) with FFmpeg. Channels are averaged; other rates are resampled with
    soxr (HQ). A part of a wav or flac file costs as much as it is long; other recordings are
    decoded as a whole, and the last one is kept for its next part.

    Args:
        audio: As ``espnet_moe.data.sources`` says.

    Returns:
        Samples, float32, (samples,), at 16 kHz, nominally in [-1, 1].

    Raises:
        AudioError: When the file is missing, has no bytes, cannot be decoded to its end, ends
            before its declared duration or more than 0.1 s before its part does, or decodes to no
            samples or to NaN or infinity.
    """
    source = parse_source(str(audio))
    if source.row is not None:
        return _load_row(source)
    path = Path(source.path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        status = None
    if status is None or not stat.S_ISREG(status.st_mode):
        raise AudioError(f"{path} does not exist; unpack the corpus again or correct the path")
    if status.st_size == 0:
        raise AudioError(f"{path} is empty (0 bytes); fetch or unpack it again")
    return _samples(source, *(_decode(path) if source.whole else _decode_part(source)))


def _samples(source: AudioSource, frames: Samples, rate: int) -> Samples:
    """Check frames, (frames, channels), and bring them into the form we want."""
    samples = frames.mean(axis=1, dtype=np.float32) if frames.shape[1] > 1 else frames[:, 0]
    if samples.size == 0:
        raise AudioError(f"{source} decodes to no samples; fetch or unpack it again")
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")
        if samples.size == 0:
            raise AudioError(f"{source} is too short to resample ({len(frames)} samples)")
    # After resampling, which spreads them: there are fewer samples to look at.
    if not np.isfinite(samples).all():
        raise AudioError(f"{source} holds NaN or infinite samples; make it again from its source")
    return np.ascontiguousarray(samples, dtype=np.float32)


def _load_row(source: AudioSource) -> Samples:
    """Decode the audio file in a row of a parquet file."""
    assert source.row is not None
    try:
        content, name = read_row(source.path, source.row)
    except ParquetError as error:
        raise AudioError(str(error)) from None
    # Through a file: containers are looked through from both ends, by two libraries.
    with tempfile.NamedTemporaryFile(suffix=PurePath(name).suffix) as file:
        file.write(content)
        file.flush()
        try:
            return load_audio(file.name)
        except AudioError as error:
            raise AudioError(str(error).replace(file.name, str(source))) from None


def is_stored_as(audio: str | Path, audio_format: str) -> bool:
    """Whether audio is a file as formatting writes it: ``flac`` or ``wav``, 16 bit, 16 kHz, mono.

    A part of a file never is.
    """
    source = parse_source(str(audio))
    if not source.whole or Path(source.path).suffix.lower() != f".{audio_format}":
        return False
    try:
        stored = soundfile.info(source.path)
    except soundfile.LibsndfileError:  # of another format than its name says
        return False
    return (
        stored.format == audio_format.upper()
        and stored.subtype == "PCM_16"
        and stored.samplerate == SAMPLE_RATE
        and stored.channels == 1
    )


def trim_silence(x: Samples, threshold_db: float = 40.0, margin: Seconds = 0.1) -> Samples:
    """Cut leading and trailing silence; see ``speech_bounds``."""
    start, end = speech_bounds(x, threshold_db, margin)
    return x[start:end]


def speech_bounds(x: Samples, threshold_db: float = 40.0, margin: Seconds = 0.1) -> tuple[int, int]:
    """Find where leading silence ends and trailing silence begins.

    Args:
        x: Samples, (samples,), at 16 kHz.
        threshold_db: A 30 ms frame is silent when it is this many dB below the loudest one.
        margin: Seconds of silence left at either end.

    Returns:
        First sample to keep, and the one after the last; all where it is silent throughout.
    """
    hop = int(_TRIM_HOP * SAMPLE_RATE)
    count = len(x) // hop
    if count == 0:
        return 0, len(x)
    # A constant offset is no sound.
    hops = (x[: count * hop] - x.mean()).reshape(count, hop)
    power = np.einsum("ij,ij->i", hops, hops).astype(np.float64) / hop
    # Averaged over three hops, so that a single click neither sets the level nor ends the silence.
    power = np.convolve(power, np.full(_TRIM_FRAME_HOPS, 1 / _TRIM_FRAME_HOPS), mode="same")
    if power.max() <= 0:
        return 0, len(x)
    loud = np.flatnonzero(power >= power.max() * 10 ** (-threshold_db / 10))
    edge = int(margin * SAMPLE_RATE)
    start = max(0, int(loud[0]) * hop - edge)
    # The samples past the last whole hop are kept with it.
    end = len(x) if loud[-1] == count - 1 else min(len(x), (int(loud[-1]) + 1) * hop + edge)
    return start, end


def _decode(path: Path) -> tuple[Samples, int]:
    """Return samples as (frames, channels) and the rate in Hz."""
    if path.suffix.lower() in FFMPEG_ONLY:
        return _decode_ffmpeg(path)
    try:
        stream = soundfile.SoundFile(path)
    except soundfile.LibsndfileError:
        return _decode_ffmpeg(path)
    with stream:
        if stream.format == "MP3" and not mp3_states_length(path):
            return _decode_ffmpeg(path)
        check_whole(path, stream.format)
        # Read in blocks: a header may declare any number of frames, or none.
        blocks = []
        read = 0
        try:
            # At the length that the header states there is nothing to ask for once more.
            while read != stream.frames and len(
                block := stream.read(_BLOCK, dtype="float32", always_2d=True)
            ):
                blocks.append(block)
                read += len(block)
        except soundfile.LibsndfileError as error:
            raise _truncated(path, error.error_string) from None
        # A copy of what is in one block would cost as much as a third of its decoding.
        if len(blocks) == 1:
            frames = blocks[0]
        else:
            frames = np.concatenate(blocks) if blocks else np.zeros((0, 1), np.float32)
        if stream.frames < _UNKNOWN:
            check_duration(path, len(frames) / stream.samplerate, stream.frames / stream.samplerate)
        return frames, stream.samplerate


def _decode_part(source: AudioSource) -> tuple[Samples, int]:
    """Return the frames of a part as (frames, channels), and the rate in Hz."""
    path = Path(source.path)
    if (found := _seek_part(source)) is not None:
        return found
    status = path.stat()
    frames, rate = _decode_kept(path, status.st_size, status.st_mtime_ns)
    first, last = _bounds(source, len(frames), rate)
    return frames[first:last].copy(), rate  # what is kept is not for the caller to change


@lru_cache(maxsize=1)
def _decode_kept(path: Path, size: int, time: int) -> tuple[Samples, int]:
    """``_decode``, without decoding the last recording again while it has this size and time."""
    return _decode(path)


def _seek_part(source: AudioSource) -> tuple[Samples, int] | None:
    """Read a part by going to it; ``None`` where the format or the header does not allow it."""
    path = Path(source.path)
    try:
        stream = soundfile.SoundFile(path)
    except soundfile.LibsndfileError:
        return None
    with stream:
        if stream.format not in _SEEKABLE or not 0 < stream.frames < _UNKNOWN:
            return None
        check_whole(path, stream.format)
        first, last = _bounds(source, stream.frames, stream.samplerate)
        try:
            stream.seek(first)
            frames = stream.read(last - first, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise _truncated(path, error.error_string) from None
        if len(frames) < last - first:
            raise _truncated(path, f"{last - first - len(frames)} samples of {source} are missing")
        return frames, stream.samplerate


def _bounds(source: AudioSource, count: int, rate: int) -> tuple[int, int]:
    """Return a part's first frame and the one after its last, in a recording of ``count``."""
    assert source.start is not None and source.end is not None
    if source.end <= source.start:
        raise AudioError(f"{source} ends before it starts; correct the times")
    length = count / rate
    if source.start >= length or source.end > length + _PART_TOLERANCE:
        raise AudioError(
            f"{source} reaches past the end of the recording, which has {length:.2f} s; fetch or "
            "unpack it again, or correct the times"
        )
    return round(source.start * rate), min(count, round(source.end * rate))


def _truncated(path: Path, reason: str) -> AudioError:
    return AudioError(
        f"{path} is truncated or damaged: {reason.rstrip('.')}; fetch or unpack it again"
    )


def _decode_ffmpeg(path: Path) -> tuple[Samples, int]:
    import av

    blocks = []
    with ffmpeg_errors(path), av.open(str(path)) as container:
        if not container.streams.audio:
            raise AudioError(f"{path} holds no audio stream; give an audio file")
        stream = container.streams.audio[0]
        # Any sample format to planar float; the rate and the channels stay.
        converter, rate = av.AudioResampler(format="fltp"), 0
        for frame in container.decode(stream):
            if rate and frame.sample_rate != rate:
                raise AudioError(f"{path} changes its sampling rate on the way; convert it to wav")
            rate = frame.sample_rate
            blocks += [part.to_ndarray() for part in converter.resample(frame)]
        declared = None
        if stream.duration and stream.time_base:
            declared = float(stream.duration * stream.time_base)
        states_duration = any(name in container.format.name for name in STATES_DURATION)
    if not blocks:
        return np.zeros((0, 1), np.float32), SAMPLE_RATE
    if len({len(block) for block in blocks}) > 1:
        raise AudioError(f"{path} changes its number of channels on the way; convert it to wav")
    frames = np.concatenate(blocks, axis=1).T.astype(np.float32, copy=False)
    if declared is not None and states_duration:
        check_duration(path, len(frames) / rate, declared)
    return frames, rate


@contextmanager
def ffmpeg_errors(path: Path) -> Iterator[None]:
    import av

    try:
        yield
    # PyAV divides by a rate of zero, or indexes a stream that is not there, on some garbage.
    except (av.FFmpegError, ArithmeticError, EOFError, LookupError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AudioError(
            f"{path} cannot be decoded: it is truncated, damaged, or no audio ({reason}); "
            "fetch or unpack it again"
        ) from None


def check_duration(path: Path, decoded: Seconds, declared: Seconds) -> None:
    if declared - decoded > max(_TOLERANCE_SECONDS, _TOLERANCE * declared):
        raise AudioError(
            f"{path} is truncated: {decoded:.2f} s of {declared:.2f} s can be decoded; fetch or "
            "unpack it again"
        )


def mp3_states_length(path: Path) -> bool:
    """Whether an mp3 has a header frame with its length.

    Without one libsndfile guesses the length from the first frame's bit rate and reads no further:
    of a file with a variable bit rate it may return a sixth.
    """
    with path.open("rb") as stream:
        head = stream.read(_MP3_HEAD)
    return any(name in head for name in (b"Xing", b"Info", b"VBRI"))


def check_whole(path: Path, container: str) -> None:
    """Find cuts that libsndfile passes over: it shortens wav and ogg files silently."""
    lost = 0.0
    if container in ("WAV", "WAVEX"):
        lost = _riff_lost(path)
    elif container == "OGG":
        lost = _ogg_lost(path)
    if lost > 0:
        raise AudioError(
            f"{path} is truncated: {lost:.0f} bytes are missing at its end; fetch or unpack it "
            "again"
        )


def _riff_lost(path: Path) -> float:
    """Bytes a wav's data chunk lacks, where that is more than the tolerance."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(4) != b"RIFF":
            return 0
        rate = 0
        position = 12
        while position + 8 <= size:
            stream.seek(position)
            name, length = struct.unpack("<4sI", stream.read(8))
            if name == b"fmt ":
                rate = struct.unpack("<I", stream.read(12)[8:])[0]  # bytes a second
            if name == b"data":
                lost = position + 8 + length - size
                tolerated = max(_TOLERANCE * length, _TOLERANCE_SECONDS * rate)
                return lost if lost > tolerated and length < _RIFF_UNKNOWN_SIZE else 0
            position += 8 + length + length % 2
    return 0


def _ogg_lost(path: Path) -> int:
    """Bytes the last Ogg page lacks (https://www.rfc-editor.org/rfc/rfc3533, section 6)."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(0, size - _OGG_MAX_PAGE))
        tail = stream.read()
    page = tail[tail.rfind(b"OggS") :]
    if not page.startswith(b"OggS"):
        return 0
    if len(page) < _OGG_PAGE_HEADER or len(page) < _OGG_PAGE_HEADER + page[26]:
        return 1
    segments = page[_OGG_PAGE_HEADER : _OGG_PAGE_HEADER + page[26]]
    return max(0, _OGG_PAGE_HEADER + len(segments) + sum(segments) - len(page))
