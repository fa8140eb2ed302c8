"""Make a corpus of synthetic speech in the layout of Common Voice, MLS or Kathbath.

Made once: a second call with the same options returns at once, one with others replaces it.
"""

import argparse
import json
from collections.abc import Sequence

from espnet_moe.bin import cli
from espnet_moe.data.mini_corpus import (
    AUDIO,
    DEFAULT_RELEASE,
    LAYOUTS,
    MiniCorpusOptions,
    make_mini_corpus,
)


def get_parser() -> argparse.ArgumentParser:
    """Make the parser of this command line."""
    parser = cli.parser(__doc__, "make_mini_corpus")
    parser.add_argument("--out", required=True, metavar="DIR", help="corpus folder")
    parser.add_argument("--layout", required=True, choices=LAYOUTS, help="whose layout")
    parser.add_argument(
        "--lang",
        required=True,
        help="; ".join(f"{name}: {', '.join(codes)}" for name, codes in LAYOUTS.items()),
    )
    parser.add_argument("--size", required=True, type=int, help="number of training utterances")
    parser.add_argument("--dev_size", type=int, default=40, help="... of the development set")
    parser.add_argument("--test_size", type=int, default=60, help="... of each test set")
    parser.add_argument("--seed", type=int, default=0, help="of sentences, voices and noise")
    parser.add_argument("--nj", type=int, default=2, help="number of processes")
    parser.add_argument("--release", default=DEFAULT_RELEASE, help="commonvoice: its number")
    parser.add_argument("--audio", default="flac", choices=AUDIO, help="mls: audio format")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = vars(get_parser().parse_args(argv))
    out, num_jobs = args.pop("out"), args.pop("nj")
    manifest = make_mini_corpus(MiniCorpusOptions(**args), out, num_jobs)
    sections = json.loads(manifest.read_text(encoding="utf-8"))["sections"]
    counts = (
        f"{name} {facts['utterances']} utterances of {facts['speakers']} speakers "
        f"({facts['hours']:.2f} h)"
        for name, facts in sections.items()
    )
    print(f"{manifest.parent}: {', '.join(counts)}")


if __name__ == "__main__":
    cli.run(main)
