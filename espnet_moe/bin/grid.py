"""A grid of experiments: what is to be done, and what has come of it.

list      the experiments that are not finished, a name a line, after writing <folder>/options
finish    note that an experiment's results are of its options
report    tables and a picture of the finished ones: <exp>/<grid>/report.md, report.csv, wer.png; of
          a grid with the axis start learning curves of the system oracle, too:
          curves_<backbone>.tsv, which `analyze transfer --curves` reads
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_moe.bin import cli
from espnet_moe.config import ConfigError
from espnet_moe.data.files import write_text
from espnet_moe.grid import read_grid
from espnet_moe.report.aggregate import to_csv
from espnet_moe.report.grid import (
    CURVES,
    domain_table,
    draw,
    learning_curves,
    parameter_table,
    read_finished,
    wer_table,
)

DOMAINS = "Sets of corpora that the training has heard, against those that it has not"


def get_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = cli.parser(__doc__, "grid")
    parser.add_argument("task", choices=("list", "finish", "report"))
    parser.add_argument("--registry", default="conf/grid.yaml", help="the grids")
    parser.add_argument("--grid", required=True, help="one of them")
    parser.add_argument("--exp", type=Path, default=Path("exp/grid"), help="of all experiments")
    parser.add_argument("--name", help="finish: of the experiment")
    parser.add_argument(
        "--run_args", default="", help="list, finish: further words of all experiments, in one"
    )
    parser.add_argument("--system", nargs="+", default=["oracle"], help="report: whose WER")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Do the task.

    Raises:
        UserError: For a registry that cannot be used, an experiment that is not in it, and a report
            where none is finished.
    """
    args = get_parser().parse_args(argv)
    experiments = read_grid(args.registry, args.grid, args.exp)
    if args.task == "list":
        done = [one.name for one in experiments if one.is_done(args.run_args)]
        for one in experiments:
            if one.name not in done:
                one.prepare(args.run_args)
                print(one.name)
        print(f"{len(done)} of {len(experiments)} experiments are finished", file=sys.stderr)
    elif args.task == "finish":
        by_name = {one.name: one for one in experiments}
        if args.name not in by_name:
            raise ConfigError(f"--name {args.name} is none of {', '.join(by_name)}")
        by_name[args.name].finish(args.run_args)
    else:
        finished = read_finished(experiments)
        if not finished:
            raise ConfigError(f"no experiment of {args.grid} is finished in {args.exp}")
        folder = args.exp / args.grid
        wer, parameters = wer_table(finished, args.system), parameter_table(finished, args.system)
        domains = domain_table(finished, args.system)
        picture = draw(finished, args.system, folder / "wer.png")
        count = f"{len(finished)} of {len(experiments)} experiments are finished."
        parts = [
            f"# {args.grid}: WER of {', '.join(args.system)} in %\n\n{count} In brackets: 95 % "
            "bootstrap interval over utterances.\n\n" + wer.to_markdown(),
            "![WER](wer.png)\n" if picture else "",
            "" if domains is None else f"## {DOMAINS}\n\n{domains.to_markdown()}",
            "## Parameters\n\n" + parameters.to_markdown(),
        ]
        write_text(folder / "report.md", "\n".join(part for part in parts if part))
        write_text(folder / "report.csv", to_csv(wer))
        for backbone, rows in learning_curves(finished).items():
            lines = ["\t".join(row) for row in (CURVES, *rows)]
            write_text(folder / f"curves_{backbone}.tsv", "\n".join(lines) + "\n")
        tables = [wer, *([] if domains is None else [domains]), parameters]
        print("\n".join(table.to_text() for table in tables) + count)
        print(f"written: {folder}/report.md, report.csv" + (", wer.png" if picture else ""))


if __name__ == "__main__":
    cli.run(main)
