r"""Ask whether a stage is done and unchanged, or call it done.

Exit codes of check: 0 done, 1 to do, 2 error, 3 begun earlier from the same inputs, not finished.

Example:
  python -m espnet_moe.bin.stage check --stamp exp/.done/stage4.json --inputs dump/raw/train_hi \
    --outputs exp/stats/train_hi/stats.json
  python -m espnet_moe.bin.stage commit --stamp exp/.done/stage4.json
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_moe.bin import cli
from espnet_moe.stamps import Stage, State, check, commit


def get_parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    parser = cli.parser(__doc__, "stage")
    parser.add_argument("action", choices=("check", "commit"), help="ask, or call it done")
    parser.add_argument("--stamp", required=True, help="the stage's stamp file")
    parser.add_argument(
        "--options", nargs="*", default=[], help="what influences the outputs, as text"
    )
    parser.add_argument("--inputs", nargs="*", default=[], help="files and folders")
    parser.add_argument("--listed", nargs="*", default=[], help="wav.scp files, for their audio")
    parser.add_argument("--outputs", nargs="*", default=[], help="what the stage makes")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Check or commit."""
    args = get_parser().parse_args(argv)
    if args.action == "commit":
        commit(args.stamp)
        return
    stage = Stage(args.options, args.inputs, args.listed, args.outputs)
    state, reason = check(args.stamp, stage)
    name = Path(args.stamp).stem
    print(f"{name}: {'skipped: ' if state is State.DONE else ''}{reason}")
    if state is not State.DONE:
        sys.exit(int(state))


if __name__ == "__main__":
    cli.run(main)
