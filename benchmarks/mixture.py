#!/usr/bin/env python3
"""What a soft mixture of 8 experts of rank 16 costs beside none, and beside peers' mixtures.

Whisper small's shape, random weights; every row has gates of its own. Peers' layers hold the same
weights and stand in the same backbone. PEFT mixes by several active adapters, whose weights are the
same for all rows; X-LoRA's layers are given the gates, so that its additional pass through the
model that finds them is not counted. loralib has one expert. Peers and ours are compared by their
overhead: what they take longer than the backbone without experts.

  benchmarks/mixture.py                     # 10 minutes on 1 core
  benchmarks/mixture.py --targets "q,v" --parts step
  benchmarks/mixture.py --quick
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from harness import PERCENTILES, Report, Row, Spread, Times, Work, begin, get_parser, peak_memory
from models import (
    TARGETS,
    activate,
    decoding_step,
    encoding,
    features,
    gated,
    make_xlora,
    no_experts,
    soft_gates,
    whisper,
    with_experts,
    with_loralib,
    with_peft,
)

from espnet_moe.experts.gates import Gates

EXPERTS = 8
# Utterances and their seconds; 30 s is what Whisper's encoder hears where it is padded.
SIZES = {"encoder": (2, 5.0), "padded encoder": (1, 30.0), "step": (16, 5.0)}
BARS = {"q,v": "<= 1.10", "all linear": "<= 1.30"}


def overheads(times: Times, peer: str, passes: int = 0) -> Spread:
    """A peer's overhead, in ours: the quotient of the medians' overheads.

    An overhead is a small difference of two large times, so that quotients of single rounds are
    noise: the percentiles are those of 1000 draws of as many rounds, with replacement.

    Args:
        times: Of ``peer``, ``soft`` and ``none``.
        peer: Whose.
        passes: Further passes through the model without experts that the peer needs.
    """
    of_peer, ours, none = (np.array(times.seconds[n]) for n in (peer, "soft", "none"))
    theirs, ours = of_peer / none + passes - 1, ours / none - 1
    draws = np.random.default_rng(0).integers(0, len(none), (1000, len(none)))
    # Below a thousandth nothing can be told from nothing.
    quotients = np.median(theirs[draws], 1) / np.median(ours[draws], 1).clip(min=1e-3)
    of_all = float(np.median(theirs) / max(np.median(ours), 1e-3))
    low, high = np.percentile(quotients, PERCENTILES)
    return Spread(of_all, float(low), float(high))


def measure(report: Report, targets: str, part: str) -> None:
    """The encoder, or one decoding step, with experts in some layers."""
    quick = report.options.quick
    rows, seconds = (2, 2.0) if quick else SIZES[part]
    base = whisper("tiny" if quick else "small")
    ours, experts = with_experts(base, targets, EXPERTS)
    gates = soft_gates(rows, EXPERTS)
    same = Gates.of(gates.weights[:1].expand(rows, -1))
    one = Gates.one_hot([0] * rows, EXPERTS, gates.weights.device)
    (weighted, lora), (mixed, lora_x) = with_peft(base, experts), with_peft(base, experts)
    activate(lora, gates.weights[0])
    make_xlora(lora_x, gates.weights)
    size = f"{part}, {targets}, {rows} x {seconds:.0f} s"
    if part != "step":
        make = partial(encoding, mel=features(base, rows, seconds))
    else:
        make = partial(decoding_step, rows=rows, beams=1, seconds=seconds)
    calls = {
        "none": make(base, context=no_experts),
        "soft": make(ours, context=gated(gates)),
        "one": make(ours, context=gated(one)),
        "xlora": make(mixed, context=no_experts),
        "peft": make(weighted, context=no_experts),
        "loralib": make(with_loralib(base, experts), context=no_experts),
    }
    report.check(f"{size}: X-LoRA", calls["soft"](), calls["xlora"]())
    report.check_differs(f"{size}: experts or none", calls["soft"](), calls["none"]())
    alike = make(ours, context=gated(same))
    report.check(f"{size}: PEFT, weights of all rows alike", alike(), calls["peft"]())
    report.check(f"{size}: loralib, one expert", calls["one"](), calls["loralib"]())
    if part == "step":
        copy, inside = with_experts(base, targets, EXPERTS)
        inside.merge_mixture(copy, gates.weights[0])
        calls["merged"] = make(copy, context=no_experts)
        report.check(f"{size}: merged, weights of all rows alike", calls["merged"](), alike())
    if part == "padded encoder":  # where a round of all takes long
        del calls["one"], calls["loralib"]
    repeat = 4 if part == "step" and not quick else 1
    times = report.time(calls, repeat=repeat, warm=True)
    needed = {name: report.ceilings.seconds(Work.of(calls[name])) for name in ("soft", "none")}
    report.add(
        Row(
            f"soft / none: {size}",
            times.ratio("soft", "none"),
            bar="<= 1.30" if part == "step" else BARS[targets],
            floor=needed["soft"] / needed["none"],
            over_floor=times.of("soft").median / needed["soft"],
        )
    )
    for peer, note in (
        ("peft", "8 active adapters, one mixture for all rows"),
        ("xlora", "its layers alone, without the pass that finds the gates"),
    ):
        report.add(Row(f"{peer} soft / none: {size}", times.ratio(peer, "none"), note=note))
        what = f"overhead of {peer} / ours: {size}"
        report.add(Row(what, overheads(times, peer), bar=">= 4"))
    what = f"overhead of xlora and its first pass / ours: {size}"
    note = "the pass that finds the gates counted as one without experts"
    report.add(Row(what, overheads(times, "xlora", 1), bar=">= 4", note=note))
    if "one" in calls:
        report.add(Row(f"one expert / none: {size}", times.ratio("one", "none")))
        report.add(Row(f"loralib, one expert / none: {size}", times.ratio("loralib", "none")))
    if part != "step":
        most = {name: float(peak_memory(calls[name])) for name in ("none", "soft", "xlora")}
        for name in ("soft", "xlora"):
            value = Spread.of([most[name] / most["none"]])
            note = f"{most['none'] / 2**20:.1f} MiB without experts"
            bar = "<= 1.10" if name == "soft" else ""
            report.add(Row(f"peak memory, {name} / none: {size}", value, bar=bar, note=note))
    else:
        what = f"merged soft / none: {size}"
        report.add(Row(what, times.ratio("merged", "none"), bar="<= 1.05", floor=1.0))


def main(argv: Sequence[str] | None = None) -> Report:
    """Compare, time, print a table."""
    parser = get_parser(__doc__)
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--parts", nargs="+", choices=list(SIZES), default=list(SIZES))
    report = begin("A soft mixture of 8 experts", parser, argv)
    for part in report.options.parts:
        for targets in report.options.targets:
            measure(report, targets, part)
    report.write()
    return report


if __name__ == "__main__":
    main()
