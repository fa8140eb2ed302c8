#!/usr/bin/env python3
"""Utterances of 5 s heard at their own length, beside the same padded to 30 s with silence.

Whisper small's shape, random weights. A training step of one expert (forward, backward, AdamW), and
decoding: the encoder and greedy search of a fixed number of tokens, which random weights do not end
early. The two contexts are different inputs; each is held to transformers' encoder first, the
padded one as it is, the other by its own definition, alone against in a batch.

  benchmarks/short_utterances.py
  benchmarks/short_utterances.py --quick
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from harness import Report, Row, Work, begin, get_parser
from models import encoding, features, no_experts, whisper, with_experts
from training_step import Batch, training_step

from espnet_moe.backbones.features import pad_to_chunk
from espnet_moe.decoding.search import SearchOptions, search
from espnet_moe.experts.gates import Gates

SECONDS = 5.0
CONTEXTS = ("variable", "padded")


def transcribe(backbone: Any, mel: torch.Tensor, tokens: int) -> list[list[int]]:
    """Encode and search greedily."""
    lengths = torch.full((mel.size(0),), mel.size(2))
    with torch.inference_mode():
        encoded = backbone.encode_upper(backbone.encode_features(mel, lengths, 0), 0)
        prompt = backbone.tokens.prompt(["hi"] * mel.size(0))
        options = SearchOptions(max_tokens=tokens, repetition_limit=0)
        return [h.tokens for h in search(backbone, encoded, prompt, options)]


def main(argv: Sequence[str] | None = None) -> Report:
    """Compare, time, print a table."""
    parser = get_parser(__doc__, rounds=3)
    parser.add_argument("--rows", type=int, default=4, help="of the batch that is decoded")
    parser.add_argument("--training_rows", type=int, default=1, help="of a training step")
    parser.add_argument("--tokens", type=int, default=16, help="of every transcript")
    report = begin("Short utterances", parser, argv)
    args = report.options
    bases = {c: whisper("tiny" if args.quick else "small", c) for c in CONTEXTS}
    mel = features(bases["padded"], args.rows, SECONDS)
    steps, decodings, forwards = {}, {}, {}
    for context, base in bases.items():
        backbone, one = with_experts(base, "q,v", 1)
        batch = Batch(base, args.training_rows, SECONDS)
        gates = Gates.one_hot([0] * args.training_rows, 1, base.device)
        loss = partial(batch.loss, backbone, gates)
        steps[context] = training_step(loss, one.parameters())
        forwards[context] = encoding(base, mel, no_experts)
        decodings[context] = partial(transcribe, base, mel, args.tokens)
    with torch.no_grad():
        theirs = bases["padded"].hf.model.encoder(pad_to_chunk(mel[:1])).last_hidden_state
    ours = encoding(bases["padded"], mel[:1], no_experts)()
    report.check("padded encoder, ours and transformers'", ours, theirs)
    alone = encoding(bases["variable"], mel[:1], no_experts)()
    report.check(
        "encoder at its own length, alone and in a batch", alone, forwards["variable"]()[:1]
    )
    needed = {c: report.ceilings.seconds(Work.of(call)) for c, call in forwards.items()}
    floor = needed["padded"] / needed["variable"]
    for what, calls, rows in (
        ("training step", steps, args.training_rows),
        (f"decoding, greedy, {args.tokens} tokens", decodings, args.rows),
    ):
        times = report.time(calls)
        row = Row(
            f"throughput, own length / 30 s: {what}, {rows} x {SECONDS:.0f} s",
            times.ratio("padded", "variable"),
            bar=">= 4",
            floor=floor,
            note="floor: of the encoder alone",
        )
        report.add(row)
    report.write()
    return report


if __name__ == "__main__":
    main()
