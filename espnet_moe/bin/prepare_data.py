"""Stage 1: read and check a corpus, and write a Kaldi data directory for each split.

Writes <out>_<split>/ and <out>_checks.json.
"""

import argparse
from collections.abc import Sequence

from espnet_moe.bin import cli
from espnet_moe.data.corpora.layout import USUAL_SPLITS
from espnet_moe.data.corpora.prepare import CORPORA, PrepareOptions, prepare_corpus


def get_parser() -> argparse.ArgumentParser:
    """Make the parser of this command line."""
    parser = cli.parser(__doc__, "prepare_data")
    parser.add_argument("--corpus", required=True, choices=CORPORA, help="which corpus")
    parser.add_argument("--root", required=True, help="folder it was unpacked in")
    parser.add_argument("--language", required=True, help="ISO 639-1 code: en, hi, it, pa, te")
    parser.add_argument("--out", required=True, help="beginning of the names to write")
    parser.add_argument(
        "--splits",
        nargs="+",
        default=USUAL_SPLITS,
        help="train, dev, test; kathbath: test_known, test_noisy, test_known_noisy too",
    )
    parser.add_argument(
        "--handles", default=None, help="mls: limited supervision, 9hr or 1hr/0 ... 1hr/5"
    )
    parser.add_argument(
        "--train_from",
        default="train",
        choices=("train", "validated"),
        help="commonvoice: validated: without the speakers and sentences of dev and test",
    )
    parser.add_argument(
        "--release",
        default=None,
        help="commonvoice: which one, where there are several: 26.0 or 26.0-2026-06-12",
    )
    parser.add_argument(
        "--allow_bad_test_audio",
        type=cli.boolean,
        default=False,
        help="leave bad files out of test sets too, instead of an error",
    )
    parser.add_argument(
        "--probe_audio",
        type=cli.boolean,
        default=False,
        help="decode every file (slow; formatting does so later anyway)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = vars(get_parser().parse_args(argv))
    out = args.pop("out")
    prepare_corpus(PrepareOptions(**args), out)


if __name__ == "__main__":
    cli.run(main)
