#!/usr/bin/env python3
"""Time and memory of the encoder beside the number of experts, with the slope of the arithmetic.

Whisper small's shape, random weights; 1 to 64 experts of rank 16 in queries and values, mixed
softly (all of them act), and one a row (hard). The slope of the arithmetic is what the additional
operations of an expert cost at the rate of a large matrix product.

  benchmarks/expert_count.py
  benchmarks/expert_count.py --quick
"""

from collections.abc import Sequence

import numpy as np
from harness import Report, Row, Spread, Work, begin, get_parser, peak_memory
from models import encoding, features, gated, no_experts, soft_gates, whisper, with_experts

from espnet_moe.experts.gates import Gates


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, fit a line, print a table."""
    parser = get_parser(__doc__, rounds=5)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    report = begin("Cost against the number of experts", parser, argv)
    quick, counts = report.options.quick, report.options.counts
    rows, seconds = (2, 1.0) if quick else (2, 5.0)
    size = f"{rows} x {seconds:.0f} s"
    base = whisper("tiny" if quick else "small")
    mel = features(base, rows, seconds)
    calls = {"none": encoding(base, mel, no_experts)}
    for count in counts:
        backbone, experts = with_experts(base, "q,v", count)
        calls[f"soft {count}"] = encoding(backbone, mel, gated(soft_gates(rows, count)))
        routes = Gates.one_hot([e % count for e in range(rows)], count, base.device)
        if count > 1:
            calls[f"hard {count}"] = encoding(backbone, mel, gated(routes))
        held = sum(p.nbytes for p in experts.parameters()) / 2**20
        most = {name: peak_memory(calls[name]) for name in ("none", f"soft {count}")}
        value = Spread.of([most[f"soft {count}"] / most["none"]])
        note = f"the experts themselves hold {held:.1f} MiB"
        report.add(Row(f"peak memory, soft {count} / none: {size}", value, note=note))
    times = report.time(calls)
    floor = {name: report.ceilings.seconds(Work.of(call)) for name, call in calls.items()}
    for name in calls:
        if name != "none":
            value = times.ratio(name, "none")
            over = times.of(name).median / floor[name]
            row = Row(f"{name} / none: {size}", value, floor=floor[name] / floor["none"])
            report.add(Row(row.what, value, floor=row.floor, over_floor=over))
    # In encoders' times, so that a machine that is slower for a while makes no slope.
    soft = [times.ratio(f"soft {c}", "none").median for c in counts]
    slope, start = np.polyfit(counts, soft, 1)
    fitted = np.polyval(np.array([slope, start]), np.array(counts))
    spread = float(np.sum((np.array(soft) - np.mean(soft)) ** 2))
    explained = 1 - float(np.sum((np.array(soft) - fitted) ** 2)) / spread
    first, last = f"soft {counts[0]}", f"soft {counts[-1]}"
    needed = (floor[last] - floor[first]) / floor["none"] / (counts[-1] - counts[0])
    note = f"a line explains {100 * explained:.1f} % of the variance"
    row = Row(f"an expert more, in % of the encoder: {size}", Spread.of([100 * slope]), unit="%")
    report.add(Row(row.what, row.value, unit="%", floor=100 * needed, note=note))
    report.write()
    return report


if __name__ == "__main__":
    main()
