"""Stage 3: combine data directories into one."""

import argparse
from collections.abc import Sequence

from espnet_moe.bin import cli
from espnet_moe.data.combining import combine_datadirs
from espnet_moe.data.mixing import MEASURES, MixOptions


def get_parser() -> argparse.ArgumentParser:
    """Make the parser of this command line."""
    parser = cli.parser(__doc__, "combine_data")
    parser.add_argument(
        "--in", dest="sources", nargs="+", required=True, metavar="DIR", help="data directories"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="data directory to write")
    parser.add_argument("--max_hours", type=float, help="take so much at random (default: all)")
    parser.add_argument(
        "--shares", nargs="+", type=float, help="of each source in the whole, e.g. 0.8 0.2"
    )
    parser.add_argument("--mix_by", choices=MEASURES, default="hours", help="what shares are of")
    parser.add_argument(
        "--replacement",
        type=cli.boolean,
        default=False,
        help="repeat utterances of a source that has less than its share; else take less of others",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(argv)
    mix = None
    if args.shares is not None or args.max_hours is not None or args.replacement:
        mix = MixOptions(args.shares, args.mix_by, args.replacement, args.max_hours, args.seed)
    combined = combine_datadirs(args.sources, args.out, mix)
    print(f"{args.out}: {len(combined.utterances)} utterances, {len(combined.skipped)} skipped")


if __name__ == "__main__":
    cli.run(main)
