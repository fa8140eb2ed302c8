#!/usr/bin/env python3
"""Beam search on OWSM v4 small's real shape: whole-set decoding here against espnet2's inference.

Random weights (nothing is downloaded), the same for both; utterances of 5 to 10 s. ESPnet decodes
one utterance at a time, padded to 30 s, with `espnet2.bin.s2t_inference.Speech2Text`; it is timed
on the first few of the set, spread over the lengths, because the whole set would take it hours.
Both search with the same beam, CTC weight and longest transcript; random weights never end one
early, so both run to it. The transcripts are compared; for that, and on random weights only, this
side counts the prompt as ESPnet does in its CTC scores and lets the model say symbols.

  benchmarks/owsm_decoding.py                # about half an hour on 2 cores
  benchmarks/owsm_decoding.py --utterances 8 --espnet_utterances 2 --size mini
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "test")]


def get_parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=["small", "mini"], default="small", help="of the model")
    parser.add_argument("--utterances", type=int, default=64, help="decoded here")
    parser.add_argument("--espnet_utterances", type=int, default=4, help="of them by ESPnet")
    parser.add_argument("--batch_size", type=int, default=16, help="here")
    parser.add_argument("--beam_size", type=int, default=5, help="of both")
    parser.add_argument("--ctc_weight", type=float, default=0.3, help="of both")
    parser.add_argument("--tokens", type=int, default=40, help="of every transcript")
    parser.add_argument("--out", type=Path, help="where the figures go as JSON")
    return parser


def write_model(folder: Path, size: str) -> Path:
    """A folder with random weights in the real shape; 50,002 tokens for the small one."""
    from owsm_files import V4_SMALL, write_owsm
    from samples import TEXTS

    texts = [text for rows in TEXTS.values() for text in rows]
    if size == "mini":
        return write_owsm(folder, texts)
    return write_owsm(folder, texts, vocabulary=50002, **V4_SMALL)


def espnet_transcripts(folder: Path, waves: list[np.ndarray], args: argparse.Namespace) -> tuple:
    """Tokens of each utterance and seconds of each, one at a time."""
    from espnet2.bin.s2t_inference import Speech2Text

    speech2text = Speech2Text(
        s2t_train_config=str(folder / "absolute.yaml"),
        s2t_model_file=str(folder / "model.pth"),
        device="cpu",
        beam_size=args.beam_size,
        ctc_weight=args.ctc_weight,
        maxlenratio=-float(args.tokens),
        lang_sym="<hin>",
        task_sym="<asr>",
    )
    found, seconds = [], []
    for wave in waves:
        began = time.perf_counter()
        _, _, ids, _, _ = speech2text(wave)[0]
        seconds.append(time.perf_counter() - began)
        found.append(list(ids[3:]))
    return found, seconds


def our_transcripts(
    folder: Path, waves: list[np.ndarray], context: str, args: argparse.Namespace
) -> tuple:
    """Tokens of each utterance and seconds of the whole set."""
    from espnet_moe.backbones.loading import load_backbone
    from espnet_moe.decoding import search as searching
    from espnet_moe.decoding.ctc_prefix import CtcPrefixScorer
    from espnet_moe.decoding.search import SearchOptions, search

    backbone = load_backbone(str(folder), context).eval()
    searching.CtcPrefixScorer = lambda *given: CtcPrefixScorer(*given, lead=3)
    banned = (backbone.tokens.blank_id, *backbone.tokens.timestamps)
    backbone.tokens.__dict__["suppressed"] = banned
    options = SearchOptions(
        args.beam_size, args.tokens, repetition_limit=0, ctc_weight=args.ctc_weight
    )
    order = np.argsort([len(w) for w in waves])
    found: dict[int, list[int]] = {}
    began = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(waves), args.batch_size):
            rows = order[first : first + args.batch_size]
            lengths = torch.tensor([len(waves[i]) for i in rows])
            speech = torch.nn.utils.rnn.pad_sequence(
                [torch.from_numpy(waves[i]) for i in rows], batch_first=True
            )
            encoded = backbone.encode_upper(backbone.encode_lower(speech, lengths, 0), 0)
            prompt = backbone.tokens.prompt(["hi"] * len(rows))
            for i, hypothesis in zip(rows, search(backbone, encoded, prompt, options), strict=True):
                found[int(i)] = hypothesis.tokens
    return [found[i] for i in range(len(waves))], time.perf_counter() - began


def main() -> None:
    """Compare, time, print a table."""
    args = get_parser().parse_args()
    draw = np.random.default_rng(0)
    sizes = (draw.uniform(5.0, 10.0, args.utterances) * 16000).astype(int)
    waves = [(0.1 * draw.standard_normal(n)).astype(np.float32) for n in sizes]
    chosen = np.argsort(sizes)[np.linspace(0, len(sizes) - 1, args.espnet_utterances).astype(int)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_model(Path(temporary) / "owsm", args.size)
        config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
        config["bpemodel"] = str(folder / "bpe.model")
        config["normalize_conf"]["stats_file"] = str(folder / "feats_stats.npz")
        (folder / "absolute.yaml").write_text(yaml.safe_dump(config), "utf-8")
        theirs, seconds = espnet_transcripts(folder, [waves[i] for i in chosen], args)
        rows = [("espnet2, one by one", "padded", float(np.mean(seconds)), None)]
        for context in ("padded", "variable"):
            ours, total = our_transcripts(folder, waves, context, args)
            same = sum(ours[i] == t for i, t in zip(chosen, theirs, strict=True))
            rows.append((f"here, batches of {args.batch_size}", context, total / len(waves), same))
    print(f"{'':32}{'context':10}{'s/utterance':>12}{'ratio':>8}  same tokens as espnet2")
    for name, context, each, same in rows:
        told = "" if same is None else f"{same} of {len(chosen)}"
        print(f"{name:32}{context:10}{each:12.2f}{rows[0][2] / each:8.1f}  {told}")
    if args.out:
        facts = {
            "options": {k: str(v) for k, v in vars(args).items()},
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.processor() or platform.machine(),
            "espnet_seconds": seconds,
            "rows": [
                dict(zip(("what", "context", "seconds", "same"), r, strict=True)) for r in rows
            ],
        }
        args.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
