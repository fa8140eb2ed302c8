"""Put the results of many experiments into one table.

Reads the results.json of every folder, a row a system, and prints the table; --out writes it as CSV
and as Markdown. Folders without finished results are named on stderr and left out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_moe.bin import cli
from espnet_moe.data.files import write_text
from espnet_moe.errors import UserError
from espnet_moe.report.aggregate import METRICS, read_published, read_runs, table, to_csv


def get_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = cli.parser(__doc__, "aggregate")
    parser.add_argument("folders", nargs="+", type=Path, help="experiment folders, e.g. exp/*")
    parser.add_argument("--metric", choices=METRICS, default="wer", help="of the languages")
    parser.add_argument("--published", type=Path, help="YAML of others' figures, to be shown below")
    parser.add_argument("--out", type=Path, help="write <out>.csv and <out>.md, too")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, and write it where asked to.

    Raises:
        UserError: Where no folder has finished results.
    """
    args = get_parser().parse_args(argv)
    runs, missing = read_runs([folder for folder in args.folders if not folder.is_file()])
    for line in missing:
        print(f"left out: {line}", file=sys.stderr)
    if not runs:
        names = ", ".join(map(str, args.folders))
        raise UserError(f"no finished results in {names}: name experiment folders, e.g. exp/*")
    published = [] if args.published is None else read_published(args.published)
    found = table(runs, args.metric, published)
    print(found.to_text(), end="")
    if args.out is not None:
        write_text(args.out.with_name(f"{args.out.name}.csv"), to_csv(found))
        write_text(args.out.with_name(f"{args.out.name}.md"), found.to_markdown())
        print(f"written: {args.out}.csv and {args.out}.md")


if __name__ == "__main__":
    cli.run(main)
