#!/usr/bin/env python3
"""HDBSCAN of embeddings: package hdbscan, as the recipes use it, beside scikit-learn's.

Rows of unequal Gaussian clusters with uniform noise between them. Both get the same options and one
processor. scikit-learn has no soft memberships and places no new rows, so what the recipes do after
the fit is timed by itself.

  benchmarks/clustering.py
  benchmarks/clustering.py --quick
"""

import tracemalloc
from collections.abc import Sequence

import numpy as np
from harness import Report, Row, Spread, begin, get_parser
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score

from espnet_moe.clustering.hdbscan_clusterer import HDBSCANOptions

CLUSTERS = 8
NOISE = 0.1  # of the rows


def make_rows(count: int, dimensions: int) -> np.ndarray:
    """Rows of eight clusters, the largest four times the smallest, and noise."""
    draw = np.random.default_rng(0)
    shares = np.linspace(1.0, 4.0, CLUSTERS)
    sizes = (count * (1 - NOISE) * shares / shares.sum()).astype(int)
    centres = draw.uniform(-10.0, 10.0, (CLUSTERS, dimensions))
    rows = [c + draw.standard_normal((n, dimensions)) for c, n in zip(centres, sizes, strict=True)]
    rows.append(draw.uniform(-15.0, 15.0, (count - sizes.sum(), dimensions)))
    return draw.permutation(np.concatenate(rows))


def main(argv: Sequence[str] | None = None) -> Report:
    """Compare, time, print a table."""
    parser = get_parser(__doc__, rounds=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[2000, 10000], help="to cluster")
    parser.add_argument("--dimensions", type=int, default=10, help="after reduction")
    report = begin("HDBSCAN", parser, argv)
    args = report.options
    for count in [500] if args.quick else args.rows:
        rows, size = make_rows(count, args.dimensions), max(5, count // 50)
        options = HDBSCANOptions(min_cluster_size=size, min_samples=5)
        peer = HDBSCAN(min_cluster_size=size, min_samples=5, n_jobs=1, copy=True)
        fitted = options.build().fit(rows)
        labels = np.where((m := fitted.memberships(rows)).any(axis=1), m.argmax(axis=1), -1)
        alike = adjusted_rand_score(peer.fit_predict(rows), labels)
        report.check(f"clusters and noise of {count} rows (Rand index)", round(alike, 2), 1.0)
        calls = {
            "fit": lambda rows=rows, options=options: options.build().fit(rows),
            "peer": lambda rows=rows, peer=peer: peer.fit(rows),
            "memberships": lambda rows=rows, fitted=fitted: fitted.memberships(rows),
        }
        times = report.time(calls)
        what = f"{count} x {args.dimensions}"
        report.add(Row(f"scikit-learn's fit / hdbscan's: {what}", times.ratio("peer", "fit")))
        memory = {}
        for name in ("fit", "peer"):
            tracemalloc.start()
            calls[name]()
            memory[name] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        ratio = Spread.of([memory["peer"] / memory["fit"]])
        note = f"{memory['fit'] / 1e6:.0f} MB of arrays in hdbscan's fit"
        report.add(Row(f"the same, memory: {what}", ratio, note=note))
        note = "scikit-learn has none"
        row = Row(f"soft memberships / fit: {what}", times.ratio("memberships", "fit"), note=note)
        report.add(row)
    report.write()
    return report


if __name__ == "__main__":
    main()
