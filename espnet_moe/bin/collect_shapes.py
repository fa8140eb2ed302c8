"""Stage 4: write the lengths of a formatted data directory, and what it amounts to.

Writes speech_shape, text_shape and stats.json.
"""

import argparse
from collections.abc import Sequence

from espnet_moe.bin import cli
from espnet_moe.data.shapes import collect_shapes


def get_parser() -> argparse.ArgumentParser:
    """Make the parser of this command line."""
    parser = cli.parser(__doc__, "collect_shapes")
    parser.add_argument("--data", required=True, metavar="DIR", help="formatted data directory")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write into")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(argv)
    stats = collect_shapes(args.data, args.out)
    print(
        f"{args.data}: {stats.utterances} utterances, {stats.hours:.2f} h, "
        f"{stats.speakers} speakers, {stats.words} words"
    )


if __name__ == "__main__":
    cli.run(main)
