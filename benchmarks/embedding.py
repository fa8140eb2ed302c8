#!/usr/bin/env python3
"""Embeddings of a data directory beside the bare encoder on the same batches.

Whisper small's shape, random weights, utterances of 5 s as FLAC files. Extraction reads and decodes
the files, pools the frames of the last layer, writes the archive, and names the base by a digest of
all its weights; the encoder gets the same speech from memory. The digest is once a set and is told
apart: sets of a recipe have thousands of utterances.

  benchmarks/embedding.py
  benchmarks/embedding.py --quick
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from harness import Report, Row, Spread, begin, get_parser
from models import whisper

from espnet_moe.clustering.embeddings import extract_embeddings, read_embeddings
from espnet_moe.data.datadir import write_datadir
from espnet_moe.data.utterance import SAMPLE_RATE, Utterance
from espnet_moe.routing.pooling import pool


def write_data(folder: Path, count: int, seconds: float) -> list[np.ndarray]:
    """A data directory of noise; the samples as they are read back."""
    draw = np.random.default_rng(0)
    utterances, waves = [], []
    for i in range(count):
        path = folder / f"noise-{i:04}.flac"
        wave = 0.1 * draw.standard_normal(round(seconds * SAMPLE_RATE))
        soundfile.write(path, wave, SAMPLE_RATE, subtype="PCM_16")
        waves.append(soundfile.read(path, dtype="float32")[0])
        utterances.append(
            Utterance(path.stem, str(path), "text", "noise", "hi", "train", duration=seconds)
        )
    samples = {u.utt_id: len(w) for u, w in zip(utterances, waves, strict=True)}
    write_datadir(folder / "data", utterances, num_samples=samples)
    return waves


def main(argv: Sequence[str] | None = None) -> Report:
    """Compare, time, print a table."""
    parser = get_parser(__doc__, rounds=3)
    parser.add_argument("--utterances", type=int, default=32, help="of the set")
    parser.add_argument("--batch_size", type=int, default=8, help="of both")
    report = begin("Extracting embeddings", parser, argv)
    args = report.options
    seconds = 1.0 if args.quick else 5.0
    base = whisper("tiny" if args.quick else "small")
    layer = base.num_encoder_layers
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        waves = write_data(folder, args.utterances, seconds)
        speech = torch.from_numpy(np.stack(waves))
        lengths = torch.full((len(waves),), speech.size(1))

        def extract() -> None:
            extract_embeddings(
                base, layer, "mean", folder / "data", folder / "out", args.batch_size, "cpu"
            )

        @torch.inference_mode()
        def encode() -> torch.Tensor:
            parts = zip(speech.split(args.batch_size), lengths.split(args.batch_size), strict=True)
            found = [base.encode_lower(x, n, layer) for x, n in parts]
            return torch.cat([pool(e.hidden, e.spoken, "mean") for e in found])

        extract()
        want = encode()
        ids = [f"noise-{i:04}" for i in range(len(waves))]
        values = torch.from_numpy(read_embeddings(folder / "out").rows(ids))
        report.check("embeddings, from files and from memory", values, want)
        calls = {"extract": extract, "encode": encode, "digest": base.digest}
        times = report.time(calls)
    size = f"{args.utterances} x {seconds:.0f} s"
    what = f"throughput of extraction / bare encoder: {size}"
    report.add(Row(what, times.ratio("encode", "extract"), bar=">= 0.9"))
    seconds_of = times.seconds
    rest = [
        e / (x - d)
        for e, x, d in zip(*(seconds_of[n] for n in ("encode", "extract", "digest")), strict=True)
    ]
    note = "as in sets so large that the digest, once a set, is nothing"
    report.add(Row(f"the same without the digest: {size}", Spread.of(rest), note=note))
    report.write()
    return report


if __name__ == "__main__":
    main()
