r"""Make code-switched test sets of test sets of several languages (stage 3).

Writes <out>/<name>_<kind> and <out>/<name>_<kind>_parts for the kinds that --config asks for: inter
(whole sentences), intra (stretches of a few words) and rapid (pieces of less than a second). The
latter two need word times.

Example:
  python -m espnet_moe.bin.make_codeswitch --data dump/raw/test_hi dump/raw/test_it \
    --config conf/codeswitch.yaml --out dump/raw
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_moe.bin import cli
from espnet_moe.config import ConfigError, read_config


def get_parser() -> argparse.ArgumentParser:
    """Make the parser of this command line."""
    parser = cli.parser(__doc__, "make_codeswitch")
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="DIR", help="formatted data directories"
    )
    parser.add_argument("--config", help="YAML of options, e.g. conf/codeswitch.yaml")
    parser.add_argument("--out", metavar="DIR", help="folder to write the sets into")
    parser.add_argument(
        "--names",
        action="store_true",
        help="only print the names of the sets that --config asks for",
    )
    parser.add_argument(
        "--audio_dir", metavar="DIR", help="folder for the audio; default: data in each set"
    )
    parser.add_argument("--nj", type=int, default=1, help="number of processes")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = get_parser().parse_args(argv)
    from espnet_moe.data.codeswitch import codeswitch_options, set_names
    from espnet_moe.data.codeswitch_sets import make_codeswitch

    options = codeswitch_options(read_config(args.config))
    if args.names:
        print(*set_names(options))
        return
    if missing := [name for name in ("data", "out") if not getattr(args, name)]:
        raise ConfigError(f"needed: {', '.join('--' + name for name in missing)}")
    sizes = make_codeswitch(args.data, args.out, options, args.audio_dir, args.nj)
    for name, count in sizes.items():
        print(f"{Path(args.out) / name}: {count} utterances")


if __name__ == "__main__":
    cli.run(main)
