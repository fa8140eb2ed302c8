"""Stage 3: combine data directories into one."""

import argparse
from collections.abc import Sequence

from espnet_moe.bin import cli
from espnet_moe.data.combining import combine_datadirs


def get_parser() -> argparse.ArgumentParser:
    """Make the parser of this command line."""
    parser = cli.parser(__doc__, "combine_data")
    parser.add_argument(
        "--in", dest="sources", nargs="+", required=True, metavar="DIR", help="data directories"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="data directory to write")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(argv)
    combined = combine_datadirs(args.sources, args.out)
    print(f"{args.out}: {len(combined.utterances)} utterances, {len(combined.skipped)} skipped")


if __name__ == "__main__":
    cli.run(main)
