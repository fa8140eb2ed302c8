#!/usr/bin/env python3
"""Stages 1 to 4 on a large corpus, and formatting against the bare decoder, resampler and encoder.

A corpus in the layout of Multilingual LibriSpeech, 3 s each, whose utterances are links to a few
hundred flac files that are 16 kHz mono already, goes through `egs2/mls/moe1/run.sh` at two sizes:
seconds, the growth of the cost of an utterance, and the memory of all processes together. Then
mp3 files of 48 kHz are formatted, in turn with two processes that do nothing but decode, resample
and encode the same files with the same libraries.

  benchmarks/data_scale.py                   # about 20 minutes on 2 cores, 6 GB of disk
  benchmarks/data_scale.py --utterances 2000 200 --mp3 400
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import soundfile
import soxr

from espnet_moe.data.audio import load_audio, speech_bounds
from espnet_moe.data.corpora.mls import read_mls
from espnet_moe.data.datadir import write_datadir
from espnet_moe.data.formatting import FormatOptions, format_datadir
from espnet_moe.data.mini_corpus import MiniCorpusOptions, make_mini_corpus
from espnet_moe.data.utterance import SAMPLE_RATE, Utterance

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 3
SPEAKERS = 500
VOICES = 400  # different files
HELD = 0.01  # of the utterances, for dev and for test


def get_parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--utterances", type=int, nargs=2, default=[20000, 200000], help="of the two sizes"
    )
    parser.add_argument("--mp3", type=int, default=20000, help="utterances to format")
    parser.add_argument("--rounds", type=int, default=3, help="turns of formatting and its parts")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary one")
    parser.add_argument("--out", type=Path, help="where the figures go as JSON")
    return parser


def make_speech(folder: Path) -> tuple[list[Path], list[str]]:
    """A few hundred sentences, each repeated or cut to 3 s without silence at its ends."""
    options = MiniCorpusOptions(layout="mls", lang="it", size=VOICES, dev_size=4, test_size=4)
    make_mini_corpus(options, folder / "mini", num_jobs=os.cpu_count() or 1)
    files, texts = [], []
    for utterance in read_mls(folder / "mini", "it", ["train"]):
        samples = load_audio(utterance.audio)
        start, end = speech_bounds(samples, margin=0)
        samples = np.resize(samples[start:end], SECONDS * SAMPLE_RATE)
        if speech_bounds(samples) != (0, len(samples)):
            continue  # it was cut in a pause
        files.append(folder / "speech" / f"{len(files)}.flac")
        files[-1].parent.mkdir(exist_ok=True)
        soundfile.write(files[-1], samples, SAMPLE_RATE, subtype="PCM_16")
        texts.append(utterance.text)
    return files, texts


def make_corpus(folder: Path, count: int, files: list[Path], texts: list[str]) -> Path:
    """The corpus as its publisher packs it, with links for audio."""
    held = max(20, round(count * HELD))
    first = 0
    for split, size in (("train", count - 2 * held), ("dev", held), ("test", held)):
        rows = []
        for number in range(first, first + size):
            speaker = f"{split}".encode().hex()[:4] + str(number % SPEAKERS)
            speaker = str(int(speaker, 16))
            key = f"{speaker}_1_{number:06d}"
            audio = folder / "mls_italian" / split / "audio" / speaker / "1" / f"{key}.flac"
            audio.parent.mkdir(parents=True, exist_ok=True)
            audio.symlink_to(files[number % len(files)])
            rows.append((key, texts[number % len(texts)]))
        first += size
        place = folder / "mls_italian" / split
        (place / "transcripts.txt").write_text(
            "".join(f"{key}\t{text}\n" for key, text in rows), "utf-8"
        )
        (place / "segments.txt").write_text(
            "".join(f"{key}\thttp\t0.00\t{SECONDS}.00\n" for key, _ in rows), "utf-8"
        )
    return folder / "mls_italian"


class Memory(threading.Thread):
    """The most that this process's children hold together, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.over = threading.Event()

    def run(self) -> None:
        """Look four times a second."""
        me = psutil.Process()
        while not self.over.wait(0.25):
            total = 0
            for child in me.children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.most = max(self.most, total)


def run_stages(corpus: Path, work: Path) -> dict[str, float]:
    """Seconds of each stage and of all, and the memory of it."""
    memory = Memory()
    memory.start()
    seconds = {}
    for stage in (1, 2, 3, 4):
        began = time.perf_counter()
        subprocess.run(
            [
                ROOT / "egs2/mls/moe1/run.sh",
                *("--corpus_dir", corpus, "--stage", str(stage), "--stop_stage", str(stage)),
                *("--datadir", work / "data", "--dumpdir", work / "dump", "--expdir", work / "exp"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds[f"stage {stage}"] = time.perf_counter() - began
    memory.over.set()
    memory.join()
    written = sum(1 for _ in (work / "dump").rglob("*.flac"))
    assert written == 0, f"{written} files were encoded again"
    return {**seconds, "all": sum(seconds.values()), "GB": memory.most / 1e9}


def make_mp3(folder: Path, count: int, files: list[Path]) -> list[str]:
    """Links to mp3 files of 48 kHz."""
    made = []
    for path in files:
        samples, rate = soundfile.read(path)
        made.append(folder / "mp3" / f"{path.stem}.mp3")
        made[-1].parent.mkdir(exist_ok=True)
        soundfile.write(made[-1], soxr.resample(samples, rate, 48000), 48000, format="MP3")
    links = []
    (folder / "clips").mkdir()
    for number in range(count):
        links.append(folder / "clips" / f"{number}.mp3")
        links[-1].symlink_to(made[number % len(made)])
    return [str(link) for link in links]


def bare(paths: list[str]) -> int:
    """Decode, resample and encode; nothing is looked at or written."""
    size = 0
    for path in paths:
        samples, rate = soundfile.read(path, dtype="float32")
        samples = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")
        content = io.BytesIO()
        soundfile.write(content, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        size += content.tell()
    return size


def throughput(folder: Path, clips: list[str], text: str, rounds: int) -> list[float]:
    """Of formatting, as a share of the bare libraries', in each turn."""
    utterances = [
        Utterance(f"s{n % 50}-{n}", clip, text, f"s{n % 50}", "it", "train")
        for n, clip in enumerate(clips)
    ]
    jobs = os.cpu_count() or 1
    write_datadir(folder / "train", utterances)
    ratios = []
    for turn in range(rounds):
        began = time.perf_counter()
        with ProcessPoolExecutor(jobs) as pool:
            list(pool.map(bare, [clips[k::jobs] for k in range(jobs)]))
        alone = time.perf_counter() - began
        began = time.perf_counter()
        options = FormatOptions(num_jobs=jobs)
        format_datadir(folder / "train", folder / f"formatted{turn}", options)
        ratios.append(alone / (time.perf_counter() - began))
        print(f"turn {turn + 1}: libraries {alone:.1f} s, {ratios[-1]:.3f} of their throughput")
    return ratios


def measure(folder: Path, args: argparse.Namespace) -> dict[str, object]:
    """All of it."""
    files, texts = make_speech(folder)
    rows = {}
    for count in args.utterances:
        work = folder / str(count)
        corpus = make_corpus(work, count, files, texts)
        rows[count] = run_stages(corpus, work)
        print(count, {key: round(value, 2) for key, value in rows[count].items()}, flush=True)
    small, large = args.utterances
    growth = (rows[large]["all"] / large) / (rows[small]["all"] / small)
    print(f"cost of an utterance at {large} / at {small}: {growth:.3f}")
    ratios = throughput(folder, make_mp3(folder, args.mp3, files), texts[0], args.rounds)
    return {"stages": rows, "growth": growth, "throughput": ratios, "files": len(files)}


def main() -> None:
    """Make the corpora, measure, print."""
    args = get_parser().parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        found = measure(Path(temporary), args)
    if args.out:
        args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
