r"""Leave out, or weigh less, training utterances whose transcript the baseline does not believe.

Example:
  python -m espnet_moe.bin.filter_utterances --data dump/raw/train_te \
    --hyp exp/baseline/decode_greedy/train_te/text --max_cer 60 --out dump/raw/train_te_clean
"""

import argparse
from collections.abc import Sequence

from espnet_moe.bin import cli
from espnet_moe.data.confidence import MODES, FilterOptions, filter_utterances


def get_parser() -> argparse.ArgumentParser:
    """Make the parser of this command line."""
    default = FilterOptions()
    parser = cli.parser(__doc__, "filter_utterances")
    parser.add_argument("--data", required=True, metavar="DIR", help="data dir, no test set")
    parser.add_argument("--hyp", required=True, metavar="FILE", help="the baseline's text of it")
    parser.add_argument(
        "--mode", default=default.mode, choices=MODES, help="drop, or weigh by 1 - CER"
    )
    parser.add_argument(
        "--max_cer", type=float, default=default.max_cer, help="percent; for the mode drop"
    )
    parser.add_argument(
        "--floor", type=float, default=default.floor, help="least weight; for the mode weight"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="data dir to write")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(argv)
    options = FilterOptions(max_cer=args.max_cer, mode=args.mode, floor=args.floor)
    summary = filter_utterances(args.data, args.hyp, args.out, options)
    print(f"{args.out}: {summary.kept} utterances, {len(summary.dropped)} dropped")


if __name__ == "__main__":
    cli.run(main)
