#!/usr/bin/env python3
"""A batch of 16 rows in 2 to 8 languages, each row with its own expert, beside one expert for all.

Whisper small's shape, random weights, 8 experts of rank 16 in all cases; routes are hard. PEFT's
mixed batch (``adapter_names``) has the same weights in the same backbone. Encoder, and a decoding
step alone and with 5 beams.

  benchmarks/mixed_batch.py
  benchmarks/mixed_batch.py --quick
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from harness import Report, Row, begin, get_parser
from models import (
    TARGETS,
    decoding_step,
    encoding,
    expert_rows,
    features,
    gated,
    whisper,
    with_experts,
    with_peft,
)

EXPERTS = 8
LANGUAGES = (1, 2, 4, 8)


def named(lora_model: Any, rows: Sequence[str]) -> Any:
    """PEFT's mixed batch: an adapter's name for every row, and for every beam of it."""

    def context(beams: int) -> Any:
        names = [name for name in rows for _ in range(beams)]
        return lora_model._enable_peft_forward_hooks(adapter_names=names)

    return context


def measure(report: Report, targets: str, part: str) -> None:
    """The encoder, or a decoding step: ``step``, ``beams``."""
    quick = report.options.quick
    rows, seconds = (8, 1.0) if quick else (16, 1.0) if part == "encoder" else (16, 5.0)
    beams = 5 if part == "beams" else 1
    base = whisper("tiny" if quick else "small")
    ours, experts = with_experts(base, targets, EXPERTS)
    theirs, lora = with_peft(base, experts)
    size = f"{part}, {targets}, {rows} x {seconds:.0f} s"
    if part == "encoder":
        make = partial(encoding, mel=features(base, rows, seconds))
    else:
        make = partial(decoding_step, rows=rows, beams=beams, seconds=seconds)
    calls = {}
    for count in LANGUAGES:
        names = expert_rows(rows, count, experts.names)
        gates = experts.one_hot(names, base.device)
        calls[f"ours {count}"] = make(ours, context=gated(gates))
        if count in (1, EXPERTS):
            calls[f"peft {count}"] = make(theirs, context=named(lora, names))
            what = f"{size}: PEFT, {count} languages"
            report.check(what, calls[f"ours {count}"](), calls[f"peft {count}"]())
    what = f"{size}: 8 languages or 1"
    report.check_differs(what, calls["ours 8"](), calls["ours 1"]())
    times = report.time(calls, repeat=1 if quick or part == "encoder" else 4)
    for count in LANGUAGES[1:]:
        value = times.ratio(f"ours {count}", "ours 1")
        report.add(Row(f"{count} languages / 1: {size}", value, bar="<= 1.15"))
    value = times.ratio("ours 8", "ours 2")
    report.add(Row(f"8 languages / 2: {size}", value, note="flat"))
    value = times.ratio("peft 8", "peft 1")
    report.add(Row(f"PEFT, 8 languages / 1: {size}", value))
    value = times.ratio("peft 8", "ours 8")
    report.add(Row(f"8 languages, PEFT / ours: {size}", value, bar=">= 2"))


def main(argv: Sequence[str] | None = None) -> Report:
    """Compare, time, print a table."""
    parser = get_parser(__doc__)
    parts = ["encoder", "step", "beams"]
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=["q,v"])
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    report = begin("A batch in many languages", parser, argv)
    for targets in report.options.targets:
        for part in report.options.parts:
            measure(report, targets, part)
    report.write()
    return report


if __name__ == "__main__":
    main()
