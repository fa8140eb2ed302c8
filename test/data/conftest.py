"""Sounds, sound files and corpora for the data tests."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from espnet_moe.data.corpora.commonvoice import columns_of

SOUND_FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}


def make_tone(
    seconds: float, rate: int = 16000, channels: int = 1, hertz: float = 440
) -> np.ndarray:
    """A sine of amplitude 0.4, (samples, channels)."""
    tone = 0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(tone[:, None], channels, axis=1).astype(np.float32)


def write_sound(path: Path, samples: np.ndarray, rate: int, subtype: str | None = None) -> Path:
    """Write (samples, channels) in the format that the file's name tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = samples[:, None] if samples.ndim == 1 else samples
    suffix = path.suffix[1:]
    if suffix in ("m4a", "mp4", "aac"):
        layout = {1: "mono", 2: "stereo", 6: "5.1"}[samples.shape[1]]
        name = "adts" if suffix == "aac" else "mp4"
        with av.open(str(path), "w", format=name) as container:
            stream = container.add_stream("aac", rate=rate, layout=layout)
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples.T, np.float32), format="fltp", layout=layout
            )
            frame.sample_rate = rate
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
    else:
        container_format, usual = SOUND_FORMATS[suffix]
        soundfile.write(path, samples, rate, format=container_format, subtype=subtype or usual)
    return path


KATHBATH_SPLITS = ("train", "valid", "test_known", "test")
CLIENTS = [f"{number:0128x}" for number in (1 << 500, 2 << 500, 3 << 500)]


def touch_file(path: Path, content: bytes = b"audio") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_rows(path: Path, *rows: tuple[str, ...]) -> Path:
    return touch_file(path, "".join("\t".join(row) + "\n" for row in rows).encode())


def write_common_voice(
    folder: Path, version: int = 26, sentences: dict[str, list[str]] | None = None
) -> Path:
    """Write a Common Voice locale folder; the split's number is its speaker and clip series."""
    columns = columns_of(version)
    sentences = sentences or {"train": ['यह, "एक" है।', "दो"], "dev": ["तीन"], "test": ["चार"]}
    words = ("female", "male") if version < 17 else ("female_feminine", "male_masculine")
    for number, split in enumerate(("train", "dev", "test")):
        rows = []
        for index, sentence in enumerate(sentences[split]):
            clip = f"common_voice_{folder.name}_{number}{index}.mp3"
            touch_file(folder / "clips" / clip)
            values = {
                "client_id": CLIENTS[number],
                "path": clip,
                "sentence": sentence,
                "gender": (*words, "")[index % 3],
                "locale": folder.name,
            }
            rows.append(tuple(values.get(column, "x") for column in columns))
        write_rows(folder / f"{split}.tsv", tuple(columns), *rows)
    return folder


def write_mls(folder: Path, suffix: str = "flac") -> Path:
    touch_file(
        folder / "metainfo.txt",
        b" SPEAKER   |   GENDER   | PARTITION  |  MINUTES   |  BOOK ID  | TITLE | CHAPTER\n"
        b"  12  |  M  | train | 3.0 | 34 | A | title | one\n  56 |  F | test | 1 | 78 | B | two\n",
    )
    for split, keys in {
        "train": ["12_34_000000", "12_34_000001", "1595_5616_000923"],
        "dev": ["90_34_000000"],
        "test": ["56_78_000000"],
    }.items():
        write_rows(folder / split / "transcripts.txt", *((key, "la casa dellalba") for key in keys))
        segments = [(key, "http://x/y.mp3", "100.5", "112.75") for key in keys]
        write_rows(folder / split / "segments.txt", *segments)
        for key in keys:
            speaker, book, _ = key.split("_")
            touch_file(folder / split / "audio" / speaker / book / f"{key}.{suffix}")
    for part, keys in {"9hr": ["12_34_000000", "12_34_000001"], "1hr/3": ["12_34_000001"]}.items():
        path = folder / "train/limited_supervision" / part / "handles.txt"
        write_rows(path, *((key,) for key in keys))
    return folder


def write_kathbath(
    folder: Path, splits: tuple[str, ...] = KATHBATH_SPLITS, name: str = "hindi"
) -> Path:
    for number, split in enumerate(splits):
        rows = []
        for file, text in (
            (f"8444{number}-22{number}-f.m4a", "यह\u00a0घर"),
            (f"8445{number}-7-m.m4a", "दो\tतीन"),
        ):
            touch_file(folder / name / split / "audio" / file)
            rows.append((file, text))
        write_rows(folder / name / split / "transcription_n2w.txt", *rows)
    return folder


@pytest.fixture(scope="session")
def tone() -> Callable[..., np.ndarray]:
    return make_tone


@pytest.fixture(scope="session")
def write_audio() -> Callable[..., Path]:
    return write_sound


@pytest.fixture(scope="session")
def touch() -> Callable[..., Path]:
    return touch_file


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    return write_rows


@pytest.fixture(scope="session")
def common_voice() -> Callable[..., Path]:
    return write_common_voice


@pytest.fixture(scope="session")
def mls() -> Callable[..., Path]:
    return write_mls


@pytest.fixture(scope="session")
def kathbath() -> Callable[..., Path]:
    return write_kathbath
