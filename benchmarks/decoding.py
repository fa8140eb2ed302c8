#!/usr/bin/env python3
"""Greedy and beam search of a set: here, by transformers' generate, and by openai-whisper.

Whisper small's shape and vocabulary, random weights, the same for all; utterances of 5 s. Tokens
are compared before anything is timed, on the same 30 s of input; random weights end no transcript
early. transformers decodes the same batches, openai-whisper one utterance after the other, as it
does. Three comparisons: the search alone, from the encoder's states of the utterances' own length;
everything with 30 s of input on both sides; and as each is used, ours at the utterances' own
length. ESPnet's inference is compared by benchmarks/owsm_decoding.py.

  benchmarks/decoding.py --utterances 128 --beams 1    # twenty minutes on 1 core; beam 5 longer
  benchmarks/decoding.py                               # 8 utterances
  benchmarks/decoding.py --quick
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from harness import Report, Row, begin, get_parser
from models import features, transformers_own, whisper
from transformers import GenerationMixin, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutput

from espnet_moe.backbones.attention import Encoded
from espnet_moe.backbones.features import pad_to_chunk
from espnet_moe.backbones.whisper_loading import rename_openai
from espnet_moe.decoding.search import SearchOptions, search

SECONDS = 5.0
WRITTEN = 50  # tokens of a transcript, where the caches are reordered
Transcripts = list[list[int]]


def here(backbone: Any, mel: torch.Tensor, beams: int, tokens: int, batch: int) -> Transcripts:
    """Encode and search, batch by batch."""
    found: Transcripts = []
    with torch.inference_mode():
        for part in mel.split(batch):
            found += search_here(backbone, encode(backbone, part), beams, tokens)
    return found


@torch.inference_mode()
def encode(backbone: Any, mel: torch.Tensor) -> Encoded:
    """The encoder's states of a batch."""
    lengths = torch.full((mel.size(0),), mel.size(2))
    encoded: Encoded = backbone.encode_upper(backbone.encode_features(mel, lengths, 0), 0)
    return encoded


def search_here(backbone: Any, encoded: Encoded, beams: int, tokens: int) -> Transcripts:
    """Our search."""
    prompt = backbone.tokens.prompt(["hi"] * encoded.hidden.size(0))
    options = SearchOptions(beams, tokens, repetition_limit=0)
    return [h.tokens for h in search(backbone, encoded, prompt, options)]


@torch.inference_mode()
def beam_step(backbone: Any, encoded: Encoded, beams: int) -> dict[str, Any]:
    """A step of all beams and what follows it: the caches in the order of the beams that stay.

    With room for the longest transcript, as where nobody sets a cap, and :data:`WRITTEN` tokens.
    """
    prompt = backbone.tokens.prompt(["hi"] * (beams * encoded.hidden.size(0)))
    order = torch.arange(len(prompt)) // beams * beams
    state = backbone.start(encoded, beams, backbone.max_target_length)
    backbone.step(prompt[:, :1].repeat(1, WRITTEN), state)

    @torch.inference_mode()
    def step() -> None:
        state.length = WRITTEN
        backbone.step(prompt[:, :1], state)

    calls = {"step": step, "reordering": torch.inference_mode()(partial(state.select_rows, order))}
    for call in calls.values():
        call()
    return calls


def rule_out(mask: torch.Tensor, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Scores ``(rows, vocabulary)`` without what may not be said."""
    return scores + mask


@torch.inference_mode()
def generate(
    model: Any, backbone: Any, rows: int, beams: int, tokens: int, **inputs: Any
) -> Transcripts:
    """The search of transformers' ``model``; what may not be said is a mask that is made once.

    Its own ``suppress_tokens`` looks 1,600 ids up at every step, which few models ask for.
    """
    mask = torch.zeros(backbone.config.vocab_size)
    mask[list(backbone.tokens.suppressed)] = -torch.inf
    prompt = backbone.tokens.prompt(["hi"] * rows)
    out = GenerationMixin.generate(
        model,
        decoder_input_ids=prompt,
        logits_processor=LogitsProcessorList([partial(rule_out, mask)]),
        max_new_tokens=tokens,
        do_sample=False,
        num_beams=beams,
        early_stopping=False,
        **inputs,
    )
    return [[t for t in row if t != backbone.tokens.end_id] for row in out[:, 4:].tolist()]


def by_transformers(
    model: Any, backbone: Any, mel: torch.Tensor, beams: int, tokens: int, batch: int
) -> Transcripts:
    """Encode and search, batch by batch."""
    parts = (pad_to_chunk(part) for part in mel.split(batch))
    found = [generate(model, backbone, len(p), beams, tokens, input_features=p) for p in parts]
    return [row for part in found for row in part]


def openai_model(backbone: Any) -> Any:
    """openai-whisper's model with the backbone's weights."""
    from whisper.model import ModelDimensions, Whisper

    c = backbone.config
    model = Whisper(
        ModelDimensions(
            c.num_mel_bins,
            c.max_source_positions,
            c.d_model,
            c.encoder_attention_heads,
            c.encoder_layers,
            c.vocab_size,
            c.max_target_positions,
            c.d_model,
            c.decoder_attention_heads,
            c.decoder_layers,
        )
    )
    ours = backbone.hf.state_dict()
    names = [n for n in model.state_dict() if not re.search("alignment", n)]
    model.load_state_dict({name: ours[rename_openai(name)] for name in names})
    return model.eval()


def by_openai(model: Any, backbone: Any, mel: torch.Tensor, beams: int, tokens: int) -> Transcripts:
    """Encode and search, one utterance after the other."""
    from whisper.decoding import DecodingOptions, decode

    options = DecodingOptions(
        language="hi",
        sample_len=tokens,
        beam_size=None if beams == 1 else beams,
        suppress_tokens=list(backbone.tokens.suppressed),
        suppress_blank=False,
        without_timestamps=True,
        fp16=False,
    )
    end = backbone.tokens.end_id
    found = [decode(model, pad_to_chunk(row[None])[0], options).tokens for row in mel]
    return [[t for t in row if t < end] for row in found]


def measure(report: Report, backbone: Any, beams: int) -> None:
    """All three comparisons with one beam; with 30 s of input here of the first batch only."""
    args = report.options
    mel, batch = features(backbone, args.utterances, SECONDS), min(args.batch_size, args.utterances)
    how = "greedy" if beams == 1 else f"beam {beams}"
    told = f"{how}, {batch} x {SECONDS:.0f} s, {args.tokens} tokens"
    few = mel[: min(args.one_by_one, batch)]
    own = partial(here, backbone, beams=beams, tokens=args.tokens, batch=batch)
    peer = transformers_own(backbone)
    theirs = partial(by_transformers, peer, backbone, beams=beams, tokens=args.tokens, batch=batch)

    def padded() -> Transcripts:
        backbone.context = "padded"
        try:
            return own(mel[:batch])
        finally:
            backbone.context = "variable"

    # Of a whole batch: a decoder step costs little beside an encoder of 30 s.
    encoded = encode(backbone, mel[:batch])
    outputs = BaseModelOutput(last_hidden_state=encoded.hidden)
    model = openai_model(backbone)
    calls: dict[str, Any] = {
        "search": partial(search_here, backbone, encoded, beams, args.tokens),
        "their search": partial(
            generate, peer, backbone, batch, beams, args.tokens, encoder_outputs=outputs
        ),
        "padded": padded,
        "transformers": partial(theirs, mel[:batch]),
        "openai": partial(by_openai, model, backbone, few, beams, args.tokens),
    }
    if beams > 1:
        calls |= beam_step(backbone, encoded, beams)
    found = padded()
    report.check(f"search alone, {told}", calls["search"](), calls["their search"]())
    report.check(f"transformers, {told}", found, calls["transformers"]())
    report.check(f"openai-whisper, {told}", found[: len(few)], calls["openai"]())
    calls["own length"] = partial(own, mel)
    if args.utterances > batch:
        calls["transformers, all"] = partial(theirs, mel)
    own(mel[:batch])
    times = report.time(calls, warm=True)
    value = times.ratio("their search", "search")
    report.add(Row(f"search alone, transformers / ours: {told}", value, bar=">= 1.2"))
    if beams > 1:
        what = f"reordering {WRITTEN} tokens of room for {backbone.max_target_length} / a step"
        report.add(Row(f"{what}: {told}", times.ratio("reordering", "step")))
    value = times.ratio("transformers", "padded")
    report.add(Row(f"transformers / ours, 30 s both: {told}", value, bar=">= 1.2"))
    size = f"{how}, {args.utterances} x {SECONDS:.0f} s, batches of {batch}, {args.tokens} tokens"
    every = "transformers, all" if args.utterances > batch else "transformers"
    value = times.ratio(every, "own length")
    report.add(Row(f"transformers / ours, own length here: {size}", value, bar=">= 1.2"))
    note = f"openai-whisper one by one, on {len(few)} of them"
    value = times.ratio("openai", "padded").times(batch / len(few))
    report.add(Row(f"openai / ours, 30 s both: {told}", value, bar=">= 5", note=note))
    value = times.ratio("openai", "own length").times(args.utterances / len(few))
    report.add(Row(f"openai / ours, own length here: {size}", value, bar=">= 5", note=note))


def main(argv: Sequence[str] | None = None) -> Report:
    """Compare, time, print a table."""
    parser = get_parser(__doc__, rounds=1)
    parser.add_argument("--utterances", type=int, default=8, help="of the set")
    parser.add_argument("--one_by_one", type=int, default=2, help="of them by openai-whisper")
    parser.add_argument("--batch_size", type=int, default=8, help="here and by transformers")
    parser.add_argument("--tokens", type=int, default=16, help="of every transcript")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    report = begin("Decoding a set", parser, argv)
    backbone = whisper("tiny" if report.options.quick else "small", real_tokens=True)
    for beams in report.options.beams:
        measure(report, backbone, beams)
    report.write()
    return report


if __name__ == "__main__":
    main()
