"""Stage 2: turn audio into 16 kHz mono files and transcripts into their normal form.

A run that was killed goes on where it was; files that are finished are not done again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_moe.bin import cli
from espnet_moe.data.formatting import (
    AUDIO_FORMATS,
    FormatOptionError,
    FormatOptions,
    format_datadir,
)


def get_parser() -> argparse.ArgumentParser:
    """Make the parser of this command line."""
    default = FormatOptions()
    parser = cli.parser(__doc__, "format_audio")
    parser.add_argument(
        "--in", dest="sources", nargs="+", required=True, metavar="DIR", help="data directories"
    )
    parser.add_argument(
        "--out",
        dest="targets",
        nargs="+",
        required=True,
        metavar="DIR",
        help="one for each of --in; or, for several, one folder to write all of them into",
    )
    parser.add_argument("--nj", type=int, default=default.num_jobs, help="number of processes")
    parser.add_argument(
        "--audio_format", default=default.audio_format, choices=AUDIO_FORMATS, help="16 bit"
    )
    parser.add_argument(
        "--min_wav_duration",
        type=float,
        default=default.min_wav_duration,
        help="seconds; shorter utterances are left out",
    )
    parser.add_argument(
        "--max_wav_duration",
        type=float,
        default=default.max_wav_duration,
        help="seconds; longer utterances are left out",
    )
    parser.add_argument(
        "--trim", type=cli.boolean, default=default.trim, help="cut silence at either end"
    )
    parser.add_argument(
        "--trim_threshold_db",
        type=float,
        default=default.trim_threshold_db,
        help="silence is this far below the loudest part, dB",
    )
    parser.add_argument(
        "--trim_margin", type=float, default=default.trim_margin, help="silence kept, seconds"
    )
    parser.add_argument(
        "--allow_bad_audio",
        type=cli.boolean,
        default=default.allow_bad_audio,
        help="leave bad utterances out of test sets too, instead of an error",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    args = vars(get_parser().parse_args(argv))
    sources, targets = args.pop("sources"), args.pop("targets")
    if len(targets) == 1 < len(sources):
        targets = [Path(targets[0]) / Path(source).name for source in sources]
    if len(targets) != len(sources):
        raise FormatOptionError(
            f"--out names {len(targets)} folders for {len(sources)} of --in; give as many, or one"
        )
    options = FormatOptions(num_jobs=args.pop("nj"), **args)
    for source, target in zip(sources, targets, strict=True):
        summary = format_datadir(source, target, options)
        print(
            f"{target}: {summary.kept} utterances, {summary.hours:.2f} h, "
            f"{len(summary.skipped)} skipped, {summary.formatted} files done now"
        )


if __name__ == "__main__":
    cli.run(main)
