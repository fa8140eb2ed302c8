"""Tell an experiment in one page: <out>/index.html, with <out>/tables/*.csv and *.tex.

Reads results.json, the decode folders and analysis/*.json of --exp, and sets and audio of --data.
The page needs nothing else: pictures, sounds and scripts are in it. What the experiment has but
cannot be read, and what --analyses and --require name and is not there, is listed on stderr and in
the page, and the exit code is 1; the page is written all the same.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_moe.bin import cli


def get_parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    from espnet_moe.report.page.experiment import PARTS

    parser = cli.parser(__doc__, "report")
    parser.add_argument("--exp", type=Path, required=True, help="experiment folder")
    parser.add_argument(
        "--data", type=Path, default=Path("dump/raw"), help="folder of the formatted data dirs"
    )
    parser.add_argument("--out", type=Path, help="folder to write to; <exp>/report without")
    parser.add_argument(
        "--analyses",
        nargs="*",
        default=[],
        metavar="NAME",
        help="analyses that must be there; all that are there are shown",
    )
    parser.add_argument(
        "--require",
        nargs="+",
        default=[],
        choices=PARTS,
        metavar="PART",
        help=f"sections that must be there, of {', '.join(PARTS)}",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the utterances chosen to listen to")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page.

    Raises:
        SystemExit: With 1 where something that was asked for is missing.
    """
    args = get_parser().parse_args(argv)
    from espnet_moe.report.page.page import write_report

    out = args.exp / "report" if args.out is None else args.out
    lacking = write_report(args.exp, args.data, out, args.analyses, args.require, args.seed)
    size = (out / "index.html").stat().st_size
    print(f"written: {out / 'index.html'} ({size / 1e6:.1f} MB) and {out / 'tables'}")
    for line in lacking:
        print(f"missing: {line.part}: {line.what}: {line.why}", file=sys.stderr)
    if lacking:
        raise SystemExit(1)


if __name__ == "__main__":
    cli.run(main)
